"""What benchmarks share: what is asked of a figure beside what was measured, and with which weights that was."""

from vap_gym.cards import load_env
from vap_gym.metrics import Interval
from vap_gym.policies.known import weights_digest


def percent(value: Interval) -> str:
    """Return a share and its interval as percentages."""
    return f"{100 * value.value:.0f} % [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def met(value: Interval, *, must: float | None = None, aim: float | None = None) -> str:
    """Return the higher of two bounds that a figure is at or above, and whether its whole interval is, or "no"."""
    for what, bound in (("aim", aim), ("must", must)):
        if bound is not None and value.value >= bound:
            return f"{what}, with its interval" if value.low >= bound else what
    return "no"


def so_far(**counted: tuple[int, int]) -> str:
    """Return what is still missing of what was asked for, by what is counted: how many there are, and are wanted."""
    lacks = [f"{there} of {wanted} {name}" for name, (there, wanted) in counted.items() if there < wanted]
    return f" (so far: {', '.join(lacks)})" if lacks else ""


def weights_of(env: str, world_model: str, judge: str = "tiny") -> dict[str, str]:
    """Return digests of the weights that a card's world model (or another one) and the judge have."""
    named = {"world_model": world_model or load_env(env).world_model, "judge": judge}
    return {what: weights_digest(name) for what, name in named.items()}
