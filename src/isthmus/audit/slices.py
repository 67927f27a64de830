"""Slices: which examples share something, from columns of numbers, words or yes and no."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.audit.checks import LEAST, Mask
from isthmus.errors import BadInput

_VALUES = 6  # a column of numbers with more distinct ones is cut into quarters
_NAMES = 50  # of a column of words: the most frequent


@dataclass(frozen=True)
class Column:
    """Something known of every example.

    Parameters
    ----------
    name : str
    values : tuple
        All bool (one slice: where it holds), all numbers, or strings. None and NaN stand for what is not known.
    """

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Slice:
    """A named set of examples; ``mask`` is a boolean array (examples,)."""

    name: str
    mask: Mask


def slices_of(columns: Sequence[Column], count: int) -> tuple[tuple[Slice, ...], tuple[str, ...]]:
    """Return the slices that columns make, and what must be said of those that make none.

    Numbers of more than six distinct values are cut at their quarters; equal numbers stay together, so that ties may
    make fewer and unequal parts. Of words and of few distinct numbers each value is a slice. Slices of fewer than 10
    examples and those of all examples are left out; of slices of the same examples the first stays.

    Raises
    ------
    BadInput
        If a column has not one value an example.
    """
    found: dict[bytes, Slice] = {}
    warnings: list[str] = []
    for column in columns:
        if len(column.values) != count:
            raise BadInput(
                f"column {column.name}: {len(column.values)} values for {count} examples; give one an example"
            )
        known = np.array([_known(value) for value in column.values])
        if not known.all():
            warnings.append(f"column {column.name}: {int((~known).sum())} values are missing, so in none of its slices")
        distinct = {value for value, there in zip(column.values, known, strict=True) if there}
        if len(distinct) < 2:
            warnings.append(f"column {column.name}: constant, so it makes no slice")
            continue
        made, small = 0, 0
        for piece in _parts(column, known, distinct):
            size = int(piece.mask.sum())
            small += size < LEAST
            if LEAST <= size < count:
                made += 1
                found.setdefault(piece.mask.tobytes(), piece)
        if small:
            warnings.append(f"column {column.name}: {small} of its slices hold fewer than {LEAST} examples: left out")
    return tuple(found.values()), tuple(warnings)


def _known(value: Any) -> bool:
    return not (value is None or value == "" or (isinstance(value, float) and not np.isfinite(value)))


def _parts(column: Column, known: Mask, distinct: set[Any]) -> list[Slice]:
    values = column.values
    if all(isinstance(value, bool | np.bool_) for value in distinct):
        return [Slice(column.name, np.array([value is not None and bool(value) for value in values]))]
    if all(isinstance(value, int | float | np.number) for value in distinct):
        numbers = np.array([float(value) if there else np.nan for value, there in zip(values, known, strict=True)])
        if len(distinct) > _VALUES:
            return _quarters(column.name, numbers)
        return [Slice(f"{column.name} {value:g}", numbers == value) for value in sorted(float(v) for v in distinct)]
    texts = np.array([str(value) if there else None for value, there in zip(values, known, strict=True)], dtype=object)
    counts = Counter(text for text in texts if text is not None)
    ranked = sorted(counts, key=lambda text: (-counts[text], text))[:_NAMES]
    return [Slice(f"{column.name} {text}", np.array([value == text for value in texts])) for text in ranked]


def _quarters(name: str, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> list[Slice]:
    known = numbers[np.isfinite(numbers)]
    edges = np.unique(np.quantile(known, (0.25, 0.5, 0.75), method="lower"))
    bounds = [-np.inf, *edges.tolist(), np.inf]
    parts = []
    for low, high in itertools.pairwise(bounds):
        mask = (numbers > low) & (numbers <= high)  # what is not known is in neither
        if mask.any():
            least, most = float(numbers[mask].min()), float(numbers[mask].max())
            words = f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
            parts.append(Slice(f"{name} {words}", mask))
    return parts
