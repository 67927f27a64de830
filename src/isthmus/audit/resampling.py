"""Intervals and tests by drawing again: the bootstrap over examples and networks, and permutations of examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isthmus.audit.checks import Array, Mask

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 4_000_000  # numbers held at a time


@dataclass(frozen=True)
class Estimate:
    """A measured value with its interval, at 95 % unless said otherwise, and the examples it rests on."""

    value: float
    low: float
    high: float
    count: int


def exact_share(right: int, count: int, level: float = LEVEL) -> Estimate:
    """Return a share with its exact binomial interval (Clopper and Pearson 1934)."""
    from scipy import stats

    interval = stats.binomtest(right, count).proportion_ci(level, method="exact")
    return Estimate(right / count, float(interval.low), float(interval.high), count)


def percentile(value: float, drawn: Array, count: int, level: float = LEVEL) -> Estimate:
    """Return a value with the percentile interval of its resamples; those that are not defined are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, value, value, count)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)).tolist()
    return Estimate(value, low, high, count)


def mean_share(values: Array, seed: int = 0) -> Estimate:
    """Return the mean of values in 0 ... 1, one an example: exactly where all are 0 or 1, else by bootstrap."""
    if np.isin(values, (0.0, 1.0)).all():
        return exact_share(int(values.sum()), len(values))
    drawn = np.concatenate([weights @ values / len(values) for weights in example_draws(len(values), seed)])
    return percentile(float(values.mean()), drawn, len(values))


def example_draws(count: int, seed: int, resamples: int = RESAMPLES) -> Iterator[Array]:
    """Yield how often each example is in each resample, in parts of shape (some resamples, examples)."""
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def damage_draws(
    original: Array, narrowed: Array, masks: Mask, seed: int, resamples: int = RESAMPLES
) -> tuple[Array, Array]:
    """Return the damage overall, shape (resamples,), and per slice, shape (resamples, slices), of each resample.

    Examples are drawn again, and so are the networks of each population where it has more than one, so that an
    interval holds what differs between seeds. A slice that a resample does not reach is NaN there.

    Parameters
    ----------
    original, narrowed : array (networks, examples)
        Losses.
    masks : array (slices, examples)
    """
    rng = np.random.default_rng([seed, 1])
    whole, parts = [], []
    columns = masks.T.astype(np.float64)
    for weights in example_draws(original.shape[1], seed, resamples):
        change = _networks(rng, len(narrowed), len(weights)) @ narrowed
        change -= _networks(rng, len(original), len(weights)) @ original
        change *= weights
        whole.append(change.sum(axis=1) / original.shape[1])
        sizes = weights @ columns
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((change @ columns) / sizes)
    return np.concatenate(whole), np.concatenate(parts)


def _networks(rng: np.random.Generator, networks: int, resamples: int) -> Array:
    drawn = rng.multinomial(networks, np.full(networks, 1 / networks), size=resamples) / networks
    return np.asarray(drawn, dtype=np.float64)


def excess_test(change: Array, masks: Mask, seed: int, permutations: int = RESAMPLES) -> Array:
    """Return the p-value of each slice's damage being no greater than the rest's, corrected for all slices.

    The changes are dealt out anew among the examples; a slice's statistic is its mean in standard errors of such a
    deal, and its p-value the share of deals in which the greatest statistic of all slices is as great (Westfall and
    Young 1993, single-step maxT): the chance of one false find or more among all slices is at most the level.

    Parameters
    ----------
    change : array (examples,)
    masks : array (slices, examples)

    Returns
    -------
    array (slices,)
    """
    count, sizes = len(change), masks.sum(axis=1).astype(np.float64)
    spread = change.std(ddof=1)
    if not len(masks) or spread < 1e-15:
        return np.ones(len(masks))
    centred = change - change.mean()
    # The variance of the mean of a draw without replacement.
    errors = spread * np.sqrt((1 - sizes / count) / sizes)
    errors[errors == 0] = np.inf  # the slice of all examples has no rest
    columns = masks.T.astype(np.float64) / (sizes * errors)
    observed = centred @ columns
    rng = np.random.default_rng([seed, 2])
    greatest = np.empty(permutations)
    step = max(1, _CELLS // count)
    for start in range(0, permutations, step):
        size = min(step, permutations - start)
        dealt = rng.permuted(np.broadcast_to(centred, (size, count)), axis=1)
        greatest[start : start + size] = (dealt @ columns).max(axis=1)
    # A sum in another order differs in the last bits; an equal deal must count as equal.
    reached = (greatest[:, None] >= observed[None] - 1e-9).sum(axis=0)
    return np.asarray((1 + reached) / (1 + permutations), dtype=np.float64)
