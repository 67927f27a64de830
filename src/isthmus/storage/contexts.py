"""Contexts: what is known of an integer before it is read, by its row and its column.

Rows fall into classes by how large their integers were in the columns before; columns into classes that are written
before the stream. Integers of unlike spread then each have the table that suits them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.storage import entropy
from isthmus.storage.entropy import Contexts, Integers, Part, varint

COLUMNS = 32
"""Columns that are read in one go; the context of the next ones is how large the integers of a row were in these."""
ROW_CLASSES = (8, 16)
"""Rows fall into so many classes, or one where telling them apart saves nothing."""
COLUMN_BITS = 2
COLUMN_CLASSES = 1 << COLUMN_BITS
"""Columns fall into so many, or one; which is written before the stream."""
SAMPLE = 1 << 19
"""Integers by which classes are chosen."""


@dataclass(frozen=True)
class Classes:
    """What the context of an integer is made of: ``edges`` between classes of rows, and the class of each column."""

    edges: tuple[int, ...]
    columns: npt.NDArray[np.uint8] | None

    def contexts(self, total: npt.NDArray[np.int64], start: int, count: int) -> Contexts:
        """Return the context of each entry of columns from ``start``, whose rows had ``total`` before."""
        if not start or not self.edges:
            rows = np.zeros(len(total), dtype=np.uint8)
        else:
            rows = (1 + np.searchsorted(self.edges, _activity(total, start), side="right")).astype(np.uint8)
        if self.columns is None:
            return np.repeat(rows, count)
        return (rows[:, None] * np.uint8(COLUMN_CLASSES) + self.columns[start : start + count]).ravel()

    def step(self, columns: int) -> int:
        """Return how many columns are read in one go."""
        return COLUMNS if self.edges else columns

    def head(self) -> bytes:
        """Return what the reader must know of it."""
        told = b"".join(varint(edge) for edge in (len(self.edges), *self.edges))
        if self.columns is None:
            return told + varint(0)
        return told + varint(1) + np.packbits(np.unpackbits(self.columns[:, None], axis=1)[:, -COLUMN_BITS:]).tobytes()


def best_classes(matrix: Integers) -> Classes:
    """Return the classes that make the shortest stream, judged by a part of the rows where there are many."""
    every = max(1, matrix.size // SAMPLE)
    sample = matrix[::every]
    columns = _column_classes(sample)
    best, shortest = Classes((), None), math.inf
    for count in (0, *ROW_CLASSES):
        edges = _edges(sample, count)
        if count and not edges:
            continue
        for own in (None, columns):
            classes = Classes(edges, own)
            counts = entropy.count(parts_of(sample, classes))[1]
            # Tables and classes are written once, however many rows there are.
            body = every * entropy.message_bytes(counts) + entropy.table_bytes(counts) + len(classes.head())
            if body < shortest:
                best, shortest = classes, body
    return best


def parts_of(matrix: Integers, classes: Classes) -> list[Part]:
    """Return a matrix as what is read in one go, each with its contexts."""
    parts: list[Part] = []
    total = np.zeros(len(matrix), dtype=np.int64)
    step = classes.step(matrix.shape[1])
    for start in range(0, matrix.shape[1], step):
        block = matrix[:, start : start + step]
        parts.append((block.ravel(), classes.contexts(total, start, block.shape[1])))
        if classes.edges:
            total += magnitude(block)
    return parts


def magnitude(block: Integers) -> npt.NDArray[np.int64]:
    """Return the summed magnitude of each row."""
    total: npt.NDArray[np.int64] = np.abs(block).sum(1, dtype=np.int64)
    return total


def _activity(total: npt.NDArray[np.int64], seen: int) -> npt.NDArray[np.int64]:
    """Return the mean magnitude of each row in 256ths; whole numbers, for every machine must find the same."""
    return 256 * total // seen


def _edges(matrix: Integers, count: int) -> tuple[int, ...]:
    """Return what separates so many classes of rows: quantiles of their activity."""
    if matrix.shape[1] <= COLUMNS or not count:
        return ()
    shares = np.quantile(_activity(magnitude(matrix), matrix.shape[1]), np.arange(1, count) / count)
    return tuple(int(edge) for edge in np.unique(np.floor(shares)).tolist() if edge > 0)


def _column_classes(matrix: Integers) -> npt.NDArray[np.uint8]:
    """Return the class of each column: the quarter that its activity falls into."""
    activity = np.abs(matrix).sum(0, dtype=np.int64)
    edges = np.quantile(activity, np.arange(1, COLUMN_CLASSES) / COLUMN_CLASSES)
    classes: npt.NDArray[np.uint8] = np.searchsorted(edges, activity, side="right").astype(np.uint8)
    return classes
