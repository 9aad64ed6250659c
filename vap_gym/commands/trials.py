"""`vap-gym trials`: how many trials it takes to know success rates, to tell policies apart, to check imagination."""

from __future__ import annotations

import itertools
from json import dumps
from typing import Any


def main(
    rates: tuple[float, ...],
    *,
    half_width: float = 0.1,
    correlation: float = 0.0,
    power: float = 0.8,
    least_pearson: float | None = None,
    most_mmrv: float | None = None,
    likely: float = 0.5,
    level: float = 0.95,
    json: bool = False,
) -> None:
    """Say how many trials it takes, before any is played: from the success rates that policies are expected to have.

    For each rate: how many trials of a policy tell it to plus or minus so much. For each two neighbours in rank: how
    many starts, each tried with both, tell them apart. With a bound: how many trials of each policy an agreement of
    imagined and true rates needs, even were imagination right about everything but luck. Such as:
    vap-gym trials 0.3 0.5 0.6 --half-width 0.08 --most-mmrv 0.05

    Args:
        rates: expected success rates of the policies, 0 to 1; where nothing is known, 0.5 needs the most trials.
        half_width: of the interval of each rate.
        correlation: of two policies' outcomes from the same start; 0: pairing gains nothing.
        power: how likely a difference is to be found.
        least_pearson: bound: the correlation of imagined and true rates.
        most_mmrv: bound: how far apart policies may be that imagination orders wrongly.
        likely: how likely the bounds are to be met.
        level: of the intervals and tests.
        json: print JSON instead of lines to read.
    """
    from vap_gym.errors import VapError
    from vap_gym.evaluate.trials import trials_for_agreement, trials_for_width, trials_to_tell_apart

    if not rates:
        raise VapError("vap-gym trials needs one or more expected success rates, got none. Try vap-gym trials 0.5.")
    each = {rate: trials_for_width(rate, half_width, level=level) for rate in rates}
    told: dict[str, Any] = {"rates": [{"rate": rate, "half_width": half_width, "trials": each[rate]} for rate in each]}
    lines = [f"to know a rate of {rate:g} to ± {half_width:g}: {count} trials" for rate, count in each.items()]
    apart = [
        {
            "better": better, "worse": worse,
            "starts": trials_to_tell_apart(better, worse, correlation=correlation, power=power, level=level),
        }
        for better, worse in itertools.pairwise(sorted(each, reverse=True))
    ]  # fmt: skip
    told["tell_apart"] = apart
    lines += [
        f"to tell {one['better']:g} from {one['worse']:g} ({100 * power:.0f} % power): {one['starts']} starts"
        for one in apart
    ]
    if least_pearson is not None or most_mmrv is not None:
        count = trials_for_agreement(list(rates), least_pearson=least_pearson, most_mmrv=most_mmrv, likely=likely)
        told["agreement"] = {
            "least_pearson": least_pearson, "most_mmrv": most_mmrv, "likely": likely, "trials": count,
        }  # fmt: skip
        bounds = [f"Pearson ≥ {least_pearson:g}"] if least_pearson is not None else []
        bounds += [f"MMRV ≤ {most_mmrv:g}"] if most_mmrv is not None else []
        lines.append(
            f"for {' and '.join(bounds)} of imagined and true rates ({100 * likely:.0f} % likely, were imagination "
            f"perfect): {count} trials of each policy on either side"
        )
    print(dumps(told, indent=1) if json else "\n".join(lines))
