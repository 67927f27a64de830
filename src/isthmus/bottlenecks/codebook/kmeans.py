"""Weighted k-means of many short vectors: distances as matrix products, in chunks that stay in the cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

CHUNK = 1 << 18
"""Distances held at once: a megabyte."""
LEAST, MOST, EACH = 1 << 15, 1 << 18, 128
"""Of more vectors, so many an entry, within bounds, are drawn for all rounds but the last."""
_MANY = 16
_SAMPLE = 16
"""From so many chunks on they are shared out among threads; the start is drawn from so many vectors an entry."""


def kmeans(
    vectors: Floats, entries: int, *, weights: Floats | None = None, rounds: int = 20, seed: int = 0
) -> tuple[Floats, Labels]:
    r"""Return a table of vectors and the nearest entry of each vector.

    Minimises :math:`\sum_n \sum_j q_{nj} (x_{nj} - c_{l(n)j})^2` by Lloyd's rounds (Lloyd 1982) from a start drawn as
    k-means++ does (Arthur and Vassilvitskii 2007). An entry that nothing is nearest to moves to one of the vectors
    that are farthest from theirs.

    Parameters
    ----------
    vectors : ndarray of float32, shape ``(count, size)``
    entries : int
        Fewer come back where there are fewer vectors.
    weights : ndarray of float32, shape ``(count,)`` or ``(count, size)``, or None
        The ``q``, none below zero; those of one vector may differ from coordinate to coordinate.
    rounds : int
    seed : int
        The same seed gives the same table.

    Returns
    -------
    tuple of ndarray
        The table, float32 of shape ``(entries, size)``, by rising norm, and the labels, int32 of shape ``(count,)``.
    """
    count, size = vectors.shape
    entries = min(entries, count)
    rng = np.random.default_rng(seed)
    spread = np.ones((count, size), np.float32) if weights is None else _spread(weights, size)
    # Which entry is nearest depends on weights only where they differ within a vector.
    metric = spread if weights is not None and weights.ndim == 2 else None
    most = min(max(EACH * entries, LEAST), MOST)
    if count > most:
        drawn = np.sort(rng.choice(count, most, replace=False))
        own = None if weights is None else weights[drawn]
        table = kmeans(vectors[drawn], entries, weights=own, rounds=rounds, seed=seed)[0]
        rounds = 1
    else:
        table = _start(vectors, spread.mean(1), entries, rng)
    labels, errors = nearest(vectors, table, metric)
    for _ in range(rounds):
        table = centroids(vectors, labels, spread, table)
        empty = np.flatnonzero(np.bincount(labels, minlength=entries) == 0)
        if len(empty):
            lost = errors if metric is not None else errors * spread[:, 0]
            table[empty] = vectors[np.argsort(-lost, kind="stable")[: len(empty)]]
        before = labels
        labels, errors = nearest(vectors, table, metric)
        if np.array_equal(before, labels):
            break
    order = np.argsort((table**2).sum(1), kind="stable")
    return table[order], np.argsort(order).astype(np.int32)[labels]


def nearest(vectors: Floats, table: Floats, weights: Floats | None = None) -> tuple[Labels, Floats]:
    """Return which entry of a table is nearest to each vector, and the (weighted) squared distance to it.

    Parameters
    ----------
    vectors : ndarray of float32, shape ``(count, size)``
    table : ndarray of float32, shape ``(entries, size)``
    weights : ndarray of float32, shape ``(count, size)``, or None

    Returns
    -------
    tuple of ndarray
        Labels, int32, and squared distances, float32, of shape ``(count,)``.
    """
    labels = np.empty(len(vectors), np.int32)
    step = max(CHUNK // len(table), 1)
    squares = table**2
    plain, doubled, both = squares.sum(1), -2 * table.T, np.hstack([-2 * table, squares]).T

    def look_up(start: int) -> None:
        part = vectors[start : start + step]
        if weights is None:
            scores = part @ doubled
            scores += plain
        else:
            own = weights[start : start + step]
            scores = np.hstack([own * part, own]) @ both
        labels[start : start + step] = scores.argmin(1)

    starts = range(0, len(vectors), step)
    if len(starts) < _MANY:
        for start in starts:
            look_up(start)
    else:
        # Products this thin cost less than threads take to meet after each: a chunk is one thread's from end to end.
        blas = _blas()
        workers = max([int(found["num_threads"]) for found in blas.info()], default=1)
        with blas.limit(limits=1), ThreadPoolExecutor(workers) as pool:
            list(pool.map(look_up, starts))
    gaps = (vectors - table[labels]) ** 2
    return labels, (gaps if weights is None else weights * gaps).sum(1)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def centroids(vectors: Floats, labels: Labels, weights: Floats, table: Floats) -> Floats:
    """Return the weighted mean of the vectors of each entry; where nothing weighs, the entry of ``table`` stays.

    Parameters
    ----------
    vectors, weights : ndarray of float32, shape ``(count, size)``
    labels : ndarray of int32, shape ``(count,)``
    table : ndarray of float32, shape ``(entries, size)``
    """
    means = table.copy()
    for axis in range(vectors.shape[1]):
        mass = np.bincount(labels, weights[:, axis], minlength=len(table))
        total = np.bincount(labels, weights[:, axis] * vectors[:, axis], minlength=len(table))
        held = mass > 0
        means[held, axis] = total[held] / mass[held]
    return means


def _spread(weights: Floats, size: int) -> Floats:
    scaled = weights / max(float(weights.mean()), float(np.finfo(np.float32).tiny))
    return np.ascontiguousarray(scaled if scaled.ndim == 2 else np.repeat(scaled[:, None], size, axis=1), np.float32)


def _start(vectors: Floats, weights: Floats, entries: int, rng: np.random.Generator) -> Floats:
    """Return distinct vectors where there are as many: each drawn by its weighted distance to those before it."""
    if len(vectors) > _SAMPLE * entries:
        kept = np.sort(rng.choice(len(vectors), _SAMPLE * entries, replace=False))
        vectors, weights = vectors[kept], weights[kept]
    chosen = np.empty(entries, np.int64)
    gaps = np.full(len(vectors), np.inf)
    chances = weights.astype(np.float64)
    for entry in range(entries):
        ladder = np.cumsum(chances)
        if ladder[-1] > 0:
            place = int(np.searchsorted(ladder, rng.random() * ladder[-1], side="right"))
            chosen[entry] = min(place, len(vectors) - 1)
        else:
            chosen[entry] = rng.integers(len(vectors))
        gaps = np.minimum(gaps, ((vectors - vectors[chosen[entry]]) ** 2).sum(1))
        chances = gaps * weights
    return vectors[chosen].copy()
