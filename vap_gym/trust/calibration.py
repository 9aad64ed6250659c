"""Calibration: signals of trust → how far a frame is expected to be off; fitted to what the simulator showed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from vap_gym.errors import CheckpointError, VapError
from vap_gym.trust.signals import SIGNALS

FILE = "trust.json"  # in a world model's folder
FORMAT = "vap_gym trust 1"
OFF_M = 0.03  # an object that is further off than this is not where it is shown
KNOTS = 10
SHRUNK = 0.1  # of a risk towards the mean one: few episodes are no proof that something never happens
RIDGE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is expected of frames: their PSNR against the truth [dB], and the risk that an object is off by more than
    `OFF_M`, in [0, 1]."""

    psnr_db: Float[np.ndarray, "*batch"]
    object_risk: Float[np.ndarray, "*batch"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A monotone curve over a weighted sum of features: `np.interp(weights · features, x, y)`."""

    weights: tuple[float, ...]  # the bias last
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, told: Float[np.ndarray, "*batch F"]) -> Float[np.ndarray, "*batch"]:
        """Return the curve at features."""
        value: np.ndarray = np.interp(told @ np.array(self.weights[:-1]) + self.weights[-1], self.x, self.y)
        return value


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What signals mean, for one world model and robot."""

    psnr: Curve
    risk: Curve

    def __call__(self, signals: Float[np.ndarray, "*batch S"]) -> Expected:
        """Return what is expected of frames with such signals (`signals.SIGNALS`)."""
        told = features(signals)
        return Expected(psnr_db=self.psnr(told), object_risk=np.clip(self.risk(told), 0.0, 1.0))

    @staticmethod
    def fit(
        signals: Float[np.ndarray, "N S"], psnr_db: Float[np.ndarray, " N"], off: Bool[np.ndarray, " N"]
    ) -> Calibration:
        """Fit to N frames: a linear and a logistic model of the features, each bent by isotonic regression.

        More of a feature is never told to be better: what a few episodes say against that does not hold elsewhere.
        """
        if not len(signals) or len(signals) != len(psnr_db) or len(signals) != len(off):
            raise VapError(f"As many signals, PSNRs and outcomes are needed, got {len(signals)}, {len(psnr_db)} and "
                           f"{len(off)}. Give one of each per frame.")  # fmt: skip
        told = features(signals)
        return Calibration(
            psnr=bent(told, _linear(told, psnr_db), psnr_db),
            risk=bent(told, _logistic(told, off), off.astype(float), shrunk=SHRUNK),
        )


def features(signals: Float[np.ndarray, "*batch S"]) -> Float[np.ndarray, "*batch F"]:
    """Return signals on scales on which they add up; more of any is worse."""
    step, changed, spread_m, moved_m, near_m, filled = np.moveaxis(np.asarray(signals, np.float64), -1, 0)
    return np.stack(
        [
            np.log1p(step),
            np.log(changed + 0.01),
            np.log(spread_m + 0.002),
            np.log(moved_m + 0.002),
            np.exp(-near_m / 0.03),
            filled,
        ],
        -1,
    )


def bent(
    told: Float[np.ndarray, "N F"], weights: Float[np.ndarray, " F1"], goal: Float[np.ndarray, " N"],
    *, shrunk: float = 0.0,
) -> Curve:  # fmt: skip
    """Return the monotone curve of a weighted sum of features (the bias last) that fits best, at a few knots.

    Args:
        shrunk: towards the mean of `goal`, 0 to 1.
    """
    from scipy.optimize import isotonic_regression

    score = told @ weights[:-1] + weights[-1]
    order = np.argsort(score, kind="stable")
    fitted = isotonic_regression(goal[order]).x
    groups = np.array_split(np.arange(len(order)), min(KNOTS, len(order)))
    x = [float(score[order][group].mean()) for group in groups]
    y = [float((1 - shrunk) * fitted[group].mean() + shrunk * goal.mean()) for group in groups]
    return Curve(weights=tuple(weights.tolist()), x=tuple(x), y=tuple(y))


def read(folder: Path, robot: str) -> Calibration | None:
    """Return a world model's calibration for a robot; None where it has none. Raises CheckpointError for a bad file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT or table["signals"] != list(SIGNALS):
            raise KeyError(f"format {FORMAT!r} with signals {list(SIGNALS)}")
        if table.get("weights") != _weights(folder):
            raise KeyError("weights of the model that lies beside it")
        robots = table["robots"]
        return None if robot not in robots else Calibration(**{k: _curve(v) for k, v in robots[robot].items()})
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' is no calibration of trust for this model: it lacks {error}. Make it anew: vap-gym bench "
            f"trust --world-model {folder} --write-calibration, or remove it."
        ) from error


def write(folder: Path, calibrations: dict[str, Calibration]) -> None:
    """Write a world model's calibration, by robot, under a temporary name until it is whole."""
    robots = {
        robot: {name: {k: [round(x, 5) for x in v] for k, v in vars(getattr(one, name)).items()}
                for name in ("psnr", "risk")}
        for robot, one in calibrations.items()
    }  # fmt: skip
    kept = _robots(folder)  # of other robots: they were not measured anew
    told = {"format": FORMAT, "signals": list(SIGNALS), "weights": _weights(folder), "off_m": OFF_M}
    table = told | {"robots": kept | robots}
    temporary = folder / f".{FILE}.part"
    temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)


def _weights(folder: Path) -> dict[str, str]:
    """The hashes of all that imagines in a model's folder: another model's trust is another; a judge's is not."""
    from vap_gym.world.model import INDEX

    path = folder / INDEX
    told = json.loads(path.read_text(encoding="utf-8")).get("sha256", {}) if path.is_file() else {}
    return {name: str(value) for name, value in told.items() if name != "judge"}


def _robots(folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The robots' curves of a file; none of one that is missing, damaged, of other signals or other weights."""
    try:
        table = json.loads((folder / FILE).read_text(encoding="utf-8"))
        same = table["format"] == FORMAT and table["signals"] == list(SIGNALS)
        same = same and table["weights"] == _weights(folder)
        return dict(table["robots"]) if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _curve(table: dict[str, list[float]]) -> Curve:
    return Curve(**{name: tuple(float(x) for x in values) for name, values in table.items()})


def _linear(told: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Least squares with a little ridge, on standardised features, none of which may raise it; the bias last."""
    from scipy.optimize import lsq_linear

    x, middle, scale = _standardised(told)
    ridge = np.sqrt(RIDGE * len(x)) * np.eye(x.shape[1])[:-1]
    high = np.append(np.zeros(x.shape[1] - 1), np.inf)
    found = lsq_linear(np.concatenate([x, ridge]), np.append(goal, np.zeros(len(ridge))), (-np.inf, high))
    return _undone(found.x, middle, scale)


def _logistic(told: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Logistic regression, likewise; none may lower it."""
    from scipy.optimize import minimize

    x, middle, scale = _standardised(told)
    sign = np.where(goal, 1.0, -1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ weights)
        slope = -x.T @ (sign / (1.0 + np.exp(np.clip(margin, -50, 50)))) / len(x)
        ridge = RIDGE * np.append(weights[:-1], 0.0)
        return float(np.logaddexp(0.0, -margin).mean() + 0.5 * ridge @ weights), slope + ridge

    bounds = [(0.0, None)] * (x.shape[1] - 1) + [(-20.0, 20.0)]
    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    return _undone(found.x, middle, scale)


def _standardised(told: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    middle, scale = told.mean(0), told.std(0) + 1e-6
    return np.concatenate([(told - middle) / scale, np.ones((len(told), 1))], 1), middle, scale


def _undone(weights: np.ndarray, middle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    plain = weights[:-1] / scale
    return np.append(plain, weights[-1] - plain @ middle)
