"""Weighted k-means of numbers, of many sets at once: clusters are intervals of the sorted numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.coder import Floats

Doubles = npt.NDArray[np.float64]
_REACH = np.sqrt(3)


def kmeans(values: Floats, weights: Floats, centres: Floats, iterations: int) -> Doubles:
    """Return the centres that Lloyd's algorithm ends with, rising.

    Parameters
    ----------
    values, weights : ndarray, shape ``(sets, count)``
    centres : ndarray, shape ``(sets, clusters)``
        Where it starts, rising.
    iterations : int
        At most; it ends where no centre moves. A centre that nothing is nearest to stays where it is.
    """
    order = np.argsort(values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    mass, moment = _sums(weights), _sums(np.multiply(weights, values, dtype=np.float64))
    found = centres.astype(np.float64)
    for _ in range(iterations):
        ends = _counts(values, (found[:, 1:] + found[:, :-1]) / 2)
        inside = _between(mass, ends)
        moved = np.divide(_between(moment, ends), inside, out=found.copy(), where=inside > 0)
        if np.array_equal(moved, found):
            break
        found = np.sort(moved, axis=1)  # a centre that stayed may have been overtaken
    return found


def spread_centres(values: Floats, weights: Floats, clusters: int) -> Floats:
    """Return centres to start from, shape ``(sets, clusters)``: quantiles, drawn apart about the median.

    Levels with the least squared error are as dense as the cube root of the numbers' density (Panter and Dite 1951); of
    a normal density that is a normal one, wider by the square root of 3.
    """
    order = np.argsort(values, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    mass = _sums(np.take_along_axis(weights, order, axis=1))
    shares = np.append((np.arange(clusters) + 0.5) / clusters, 0.5)
    places = np.minimum(_counts(mass[:, 1:], shares * mass[:, -1:]), values.shape[1] - 1)
    quantiles = np.take_along_axis(values, places, axis=1)
    middle = quantiles[:, -1:]
    wide = middle + _REACH * (quantiles[:, :-1] - middle)
    return np.asarray(np.clip(wide, values[:, :1], values[:, -1:]), dtype=np.float32)


def assigned(values: Floats, centres: Floats) -> npt.NDArray[np.int32]:
    """Return the number of the centre nearest to each value.

    Parameters
    ----------
    values : ndarray, shape ``(sets, count)``
    centres : ndarray, shape ``(sets, clusters)``
        Rising.
    """
    found = np.zeros(values.shape, dtype=np.int32)
    for edge in ((centres[:, 1:] + centres[:, :-1]) / 2).T:
        found += values > edge[:, None]
    return found


def _sums(array: npt.NDArray[np.floating]) -> Doubles:
    return np.concatenate([np.zeros((len(array), 1)), np.cumsum(array, axis=1, dtype=np.float64)], axis=1)


def _between(sums: Doubles, ends: npt.NDArray[np.int64]) -> Doubles:
    """Return what the clusters hold, from running sums and from how many values lie below the edges between them."""
    edges = np.concatenate([sums[:, :1], np.take_along_axis(sums, ends, axis=1), sums[:, -1:]], axis=1)
    return np.diff(edges, axis=1)


def _counts(rising: npt.NDArray[np.floating], edges: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return for each set how many of its rising numbers do not exceed each edge: bisection, of all sets at once."""
    low = np.zeros(edges.shape, dtype=np.int64)
    high = np.full(edges.shape, rising.shape[1], dtype=np.int64)
    for _ in range(rising.shape[1].bit_length()):
        middle = (low + high) // 2
        right = np.take_along_axis(rising, np.minimum(middle, rising.shape[1] - 1), axis=1) <= edges
        right &= low < high
        low = np.where(right, middle + 1, low)
        high = np.where(right, high, middle)
    return low
