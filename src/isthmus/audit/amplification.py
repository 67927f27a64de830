"""Amplification: does narrowing hurt some slices more than others, and the rare ones most?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, check_losses
from isthmus.audit.damage import stacked
from isthmus.audit.resampling import Estimate, damage_draws, percentile
from isthmus.audit.slices import Slice

_DEALS = 5000


@dataclass(frozen=True)
class Amplified:
    """One slice: its share of the examples, and its damage as a multiple of the mean damage, with the interval."""

    name: str
    rarity: float
    amplification: Estimate


@dataclass(frozen=True)
class Amplification:
    """How much more than the mean each slice is damaged, and whether rarity goes with it.

    Parameters
    ----------
    rows : tuple of Amplified
        Most amplified first; empty where the mean damage cannot be told from none, since nothing is then amplified.
    correlation : float or None
        Spearman's, of a slice's share of the examples and its amplification: below 0 where rare slices are hurt more.
    p_value : float or None
        Two-sided, by permutation of the slices; overlapping slices are not independent, so take it as a hint.
    """

    rows: tuple[Amplified, ...]
    correlation: float | None
    p_value: float | None
    warnings: tuple[str, ...]


def measure_amplification(
    original: npt.ArrayLike, narrowed: npt.ArrayLike, slices: Sequence[Slice], *, seed: int = 0
) -> Amplification:
    """Return the increase of each slice's loss over the mean increase (Hooker et al. 2020).

    Parameters
    ----------
    original, narrowed : array (networks, examples) or (examples,)
        Losses.
    slices : sequence of Slice
    seed : int

    Raises
    ------
    BadInput
        If losses are not finite, too few, or not of the slices' examples.
    """
    first, second = check_losses(original, narrowed)
    masks = stacked(slices, first.shape[1])
    change = second.mean(axis=0) - first.mean(axis=0)
    whole, parts = damage_draws(first, second, masks, seed)
    overall = percentile(float(change.mean()), whole, len(change))
    if overall.low <= 0:
        said = "the mean damage cannot be told from none, so a multiple of it means nothing; see each slice's excess"
        return Amplification((), None, None, (said,))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(whole[:, None] > 0, parts / whole[:, None], np.nan)
    rows = [
        Amplified(
            piece.name,
            float(mask.mean()),
            percentile(float(change[mask].mean()) / overall.value, ratios[:, number], int(mask.sum())),
        )
        for number, (piece, mask) in enumerate(zip(slices, masks, strict=True))
    ]
    rows.sort(key=lambda row: -row.amplification.value)
    correlation, p_value = _rank_test(
        np.array([row.rarity for row in rows]), np.array([row.amplification.value for row in rows]), seed
    )
    return Amplification(tuple(rows), correlation, p_value, ())


def _rank_test(x: Array, y: Array, seed: int) -> tuple[float | None, float | None]:
    """Return Spearman's correlation and its two-sided permutation p-value; None where a side orders nothing."""
    from scipy import stats

    if len(x) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None, None
    first, second = (stats.rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    scale = float(np.sqrt((first @ first) * (second @ second)))
    value = float(first @ second) / scale
    dealt = np.random.default_rng(seed).permuted(np.broadcast_to(second, (_DEALS, len(y))), axis=1)
    reached = int((np.abs(dealt @ first) / scale >= abs(value) - 1e-12).sum())
    return value, (1 + reached) / (1 + _DEALS)
