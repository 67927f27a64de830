"""A loss of pairs whose mean is one less Spearman's correlation."""

from __future__ import annotations

import numpy as np

from isthmus.audit.checks import Array


def rank_losses(predicted: Array, scores: Array) -> Array:
    """Return half the squared distance of each example's standard ranks, shape (examples,).

    Average ranks of each side are centred and divided by their standard deviation; then the mean of ``(x - y)**2 / 2``
    is one less Spearman's correlation, ties included. Where a side is constant the correlation counts as 0, and every
    loss is 1.

    Parameters
    ----------
    predicted, scores : array (examples,)
    """
    first, second = _standard(predicted), _standard(scores)
    if not first.any() or not second.any():
        return np.ones(len(predicted))
    return np.asarray((first - second) ** 2 / 2, dtype=np.float64)


def _standard(values: Array) -> Array:
    from scipy import stats

    ranks = stats.rankdata(values)
    ranks -= ranks.mean()
    spread = float(ranks.std())
    return np.asarray(ranks / spread if spread > 0 else ranks, dtype=np.float64)
