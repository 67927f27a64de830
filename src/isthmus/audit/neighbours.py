"""Neighbours: which examples lie near each other, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.audit.checks import Array, Integers, check_count, check_finite, few
from isthmus.audit.resampling import Estimate, example_draws, percentile
from isthmus.errors import BadInput

NEAREST = 10
ROWS = 30
_BLOCK = 512


@dataclass(frozen=True)
class Moved:
    """An example whose neighbours changed: what it shares with before, and its first neighbours then and now."""

    index: int
    text: str
    overlap: float
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Neighbours:
    """How much of each example's neighbourhood stays.

    Parameters
    ----------
    name : str
        Of the narrowed network.
    k : int
    overlap : Estimate
        The mean share of the ``k`` nearest (by cosine) that are the same; the interval is over examples.
    same_first : float
        The share of examples with the same nearest one.
    chance : float
        The overlap that neighbours at random would have.
    rows : tuple of Moved
        Those that changed most, at most 30.
    """

    name: str
    k: int
    overlap: Estimate
    same_first: float
    chance: float
    rows: tuple[Moved, ...]
    warnings: tuple[str, ...]


def nearest(features: Array, k: int) -> Integers:
    """Return the ``k`` rows nearest to each row by cosine, nearest first, itself left out: shape (examples, k).

    Of equal ones the first comes first.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(norms > 0, norms, 1.0)
    found = np.empty((len(unit), k), dtype=np.int64)
    for start in range(0, len(unit), _BLOCK):
        likeness = unit[start : start + _BLOCK] @ unit.T
        rows = np.arange(len(likeness))
        likeness[rows, rows + start] = -np.inf
        found[start : start + _BLOCK] = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
    return found


def measure_neighbours(
    original: npt.ArrayLike,
    narrowed: npt.ArrayLike,
    texts: Sequence[str] = (),
    *,
    k: int = NEAREST,
    name: str = "",
    seed: int = 0,
) -> Neighbours:
    """Measure how much of each example's neighbourhood stays.

    Parameters
    ----------
    original : array (examples, width)
    narrowed : array (examples, any width)
    texts : sequence of str
        One an example, for the list.
    k : int
        Fewer where there are not so many examples.
    seed : int

    Raises
    ------
    BadInput
        If the features are not finite, not of the same examples, or too few.
    """
    first = check_finite(original, "the original's features", (None, None))
    second = check_finite(narrowed, "the narrowed network's features", (len(first), None))
    count = len(first)
    check_count(count, "features")
    if k < 1:
        raise BadInput(f"neighbours: k is {k}; give 1 or more")
    k = min(k, (count - 1) // 2)
    warnings = list(few(count))
    for whose, features in (("the original", first), ("the narrowed network", second)):
        repeated = count - len(np.unique(features.round(6), axis=0))
        if repeated:
            warnings.append(f"{repeated} examples have the features of another in {whose}: their order is by place")
    before, after = nearest(first, k), nearest(second, k)
    shared = (before[:, :, None] == after[:, None, :]).any(axis=2).mean(axis=1)
    drawn = np.concatenate([weights @ shared / count for weights in example_draws(count, seed)])
    order = sorted(range(count), key=lambda index: (shared[index], index))[:ROWS]

    def names(places: Integers) -> tuple[str, ...]:
        return tuple(texts[place] if texts else str(place) for place in places[:3].tolist())

    return Neighbours(
        name=name,
        k=k,
        overlap=percentile(float(shared.mean()), drawn, count),
        same_first=float((before[:, 0] == after[:, 0]).mean()),
        chance=k / (count - 1),
        rows=tuple(
            Moved(
                index,
                texts[index] if texts else str(index),
                float(shared[index]),
                names(before[index]),
                names(after[index]),
            )
            for index in order
            if shared[index] < 1
        ),
        warnings=tuple(warnings),
    )
