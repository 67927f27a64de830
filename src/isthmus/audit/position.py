"""Position bias: how an answer depends on where the part that decides it stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, check_count, check_finite, few
from isthmus.audit.resampling import Estimate, example_draws, percentile
from isthmus.errors import BadInput


@dataclass(frozen=True)
class PositionBias:
    """The score by position, before and after.

    Parameters
    ----------
    name : str
        Of the narrowed network.
    original, narrowed : tuple of Estimate
        The mean score with the deciding part at each position, first to last.
    spread_original, spread_narrowed : Estimate
        How much an example's score moves with position alone: the mean over examples of the standard deviation over
        positions.
    slope_original, slope_narrowed : Estimate
        The least-squares change of the score from the first to the last position: below 0 where the beginning counts
        more.
    slope_change, spread_change : Estimate
        Narrowed less original, on the same examples.
    """

    name: str
    original: tuple[Estimate, ...]
    narrowed: tuple[Estimate, ...]
    spread_original: Estimate
    spread_narrowed: Estimate
    slope_original: Estimate
    slope_narrowed: Estimate
    slope_change: Estimate
    spread_change: Estimate
    warnings: tuple[str, ...]


def measure_position_bias(
    original: npt.ArrayLike, narrowed: npt.ArrayLike, *, name: str = "", seed: int = 0
) -> PositionBias:
    """Measure how a score depends on position, and what narrowing changed of that.

    Parameters
    ----------
    original, narrowed : array (examples, positions)
        The same examples with the deciding part at the first ... last position (in a text, or among candidates), all
        else equal.
    seed : int

    Raises
    ------
    BadInput
        If the scores are not finite, not of the same examples, or of fewer than two positions.
    """
    first = check_finite(original, "the original's scores", (None, None))
    second = check_finite(narrowed, "the narrowed network's scores", first.shape)
    count, positions = first.shape
    check_count(count, "scores by position")
    if positions < 2:
        raise BadInput("scores by position: one position; give two or more")
    weights = list(example_draws(count, seed))

    def mean(values: Array) -> Estimate:
        return percentile(float(values.mean()), np.concatenate([part @ values / count for part in weights]), count)

    places = np.linspace(-0.5, 0.5, positions)
    slopes = [scores @ places / (places @ places) for scores in (first, second)]
    spreads = [scores.std(axis=1) for scores in (first, second)]
    return PositionBias(
        name=name,
        original=tuple(mean(first[:, place]) for place in range(positions)),
        narrowed=tuple(mean(second[:, place]) for place in range(positions)),
        spread_original=mean(spreads[0]),
        spread_narrowed=mean(spreads[1]),
        slope_original=mean(slopes[0]),
        slope_narrowed=mean(slopes[1]),
        slope_change=mean(slopes[1] - slopes[0]),
        spread_change=mean(spreads[1] - spreads[0]),
        warnings=few(count),
    )
