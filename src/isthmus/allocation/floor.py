"""The other direction of asking: the smallest share of a currency at which the quality still holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from isthmus.errors import UnreachableBudget

# The loss of quality falls about with this power of the share, which is what the second guess goes by.
_POWER = 1.5
# A guess stays this far (of the bracket, in logarithms) from its ends, so that every evaluation narrows it.
_MARGIN = 0.12


@dataclass(frozen=True)
class Trial:
    """A share that was tried, its relative metric (1 is the original's), and whether that held the floor."""

    share: float
    value: float
    holds: bool


@dataclass(frozen=True)
class Found:
    """The smallest share measured to hold the floor, its relative metric, and all that was tried, in order."""

    share: float
    value: float
    trail: tuple[Trial, ...]


def smallest(
    measure: Callable[[float], float],
    floor: float,
    *,
    low: float = 0.02,
    high: float = 1.0,
    first: float = 0.4,
    evaluations: int = 5,
    tolerance: float = 0.03,
    close: float = 0.001,
) -> Found:
    """Search the smallest share whose relative metric is at least the floor.

    Between a share that failed and one that held, ``log(1 - metric)`` is taken as linear in ``log(share)``; where that
    says nothing, the bracket is halved. The answer is always a share that was measured and held.

    Parameters
    ----------
    measure : callable
        From a share to the metric relative to the original's; costly, and called at most once for a share.
    floor : float
        The relative metric to hold, in (0, 1].
    low, high : float
        Shares between which to search; ``high`` itself is taken as the original, which holds unless it is below 1.
    first : float
        The first guess.
    evaluations : int
        How often ``measure`` is called at most.
    tolerance : float
        The search ends when the bracket is within this ratio.
    close : float
        It also ends at a share that holds the floor by no more than this.

    Returns
    -------
    Found

    Raises
    ------
    UnreachableBudget
        If no share that was tried holds the floor.
    ValueError
        If the bounds or the number of evaluations make no sense.
    """
    if not 0 < low < high <= 1 or evaluations < 1:
        raise ValueError(f"a floor is searched between two shares in (0, 1], at least once; not {low} to {high}")
    tried: dict[float, float] = {}
    share = min(max(first, low), high * (1 - tolerance))
    while len(tried) < evaluations:
        share = max(low, round(share, 4))
        if share in tried:
            break
        tried[share] = float(measure(share))
        held = [one for one, value in tried.items() if value >= floor]
        upper = min(held, default=high)
        lower = max((one for one, value in tried.items() if not value >= floor and one < upper), default=None)
        if upper in tried and (tried[upper] - floor <= close or upper <= low):
            break
        if upper <= (lower or low) * (1 + tolerance):
            break
        share = _next(tried, floor, lower, upper, low, last=len(tried) == evaluations - 1)
    return _answer(tried, floor)


def _answer(tried: dict[float, float], floor: float) -> Found:
    trail = tuple(Trial(one, value, value >= floor) for one, value in tried.items())
    holding = [trial for trial in trail if trial.holds]
    if not holding:
        best = max(trail, key=lambda trial: (trial.value, -trial.share))
        raise UnreachableBudget(
            f"floor {_percent(floor)}: none of the {len(trail)} sizes tried holds it, the best keeps "
            f"{_percent(best.value)} at {_percent(best.share)} of the size; ask for --keep {_percent(best.value)}"
        )
    found = min(holding, key=lambda trial: trial.share)
    return Found(found.share, found.value, trail)


def _next(
    tried: dict[float, float], floor: float, lower: float | None, upper: float, low: float, *, last: bool
) -> float:
    """Return the next share to try, strictly within the bracket."""
    if upper not in tried and last:
        # Nothing held so far: rather a network that is hardly smaller than none.
        return upper * 0.97
    # Aim a little within the floor: a guess that fails is worth less than one that holds.
    target = 0.95 * max(1 - floor, 1e-4)
    bottom = low if lower is None else lower
    span = math.log(upper / bottom)
    guess = math.log(math.sqrt(upper * bottom))
    above = _loss(tried[upper]) if upper in tried else 0.0
    below = _loss(tried[lower]) if lower is not None else 0.0
    if lower is not None and above > 0 and below > above:
        guess = math.log(upper) - span * math.log(target / above) / math.log(below / above)
    elif lower is not None and upper not in tried:
        guess = math.log(lower) + math.log(below / target) / _POWER
    elif lower is None and above > 0:
        guess = math.log(upper) - math.log(target / above) / _POWER
    first, final = math.log(bottom) + _MARGIN * span, math.log(upper) - _MARGIN * span
    # Where no failure is known, the lowest share itself may be tried.
    return math.exp(min(max(guess, first if lower is not None else math.log(low)), final))


def _loss(value: float) -> float:
    return 1.0 - value if math.isfinite(value) else 1.0


def _percent(value: float) -> str:
    """Write a share rounded down to a tenth of a percent, so that what is asked for can be held."""
    return f"{math.floor(value * 1000 + 1e-9) / 10:g}%" if math.isfinite(value) else "nothing"
