"""Blobs: coded matrices as bytes, each readable alone, none believed before it is checked.

A blob is: version and scheme (1 byte each); the parts of the scheme; a CRC-32. Integers go through the entropy coder;
tables of vectors and outliers are float16 as they are. The reader knows the matrix's shape from the model, so
no length that a damaged file claims is ever allocated.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadArtifact
from isthmus.storage import entropy
from isthmus.storage.coded import FINENESS, MOST_PARTS, Codebook, Coded, Outliers, Product, Sum, Uniform
from isthmus.storage.contexts import (
    COLUMN_BITS,
    ROW_CLASSES,
    Classes,
    best_classes,
    magnitude,
    parts_of,
)
from isthmus.storage.entropy import Integers, read_varint, varint

VERSION = 1
_SCHEMES: dict[type, int] = {Uniform: 0, Codebook: 1, Product: 2, Sum: 3}
_BOUNDS = (7, 15, 31, 63, 127, 255, 511, 1023, 2047)
_FARTHEST = 1 << 29
_LARGEST = 60 * FINENESS  # scales from 2 ** -60 to 2 ** 60, so that nothing overflows

Shape: TypeAlias = tuple[int, int]
Halves: TypeAlias = npt.NDArray[np.float16]


def pack(coded: Coded) -> bytes:
    """Return a coded matrix as bytes.

    Raises
    ------
    ValueError
        If it cannot be coded: no entries, integers too far apart, or a sum of too many parts.
    """
    body = bytearray([VERSION, _SCHEMES[type(coded)]])
    if isinstance(coded, Product):
        body += varint(coded.left.shape[1])
        for factor in (coded.left, coded.right):
            body += _within(factor)
    elif isinstance(coded, Sum):
        if not _addable(coded.parts, coded.shape):
            raise ValueError(f"{len(coded.parts)} parts cannot be coded as a sum of shape {coded.shape}")
        body += varint(len(coded.parts)) + b"".join(_within(part) for part in coded.parts)
        body += _grids(coded.scales)
    elif isinstance(coded, Uniform):
        body += _grids(coded.scales)
        body += _zeros(coded.zeros)
        body += _integers(coded.integers)
    else:
        body += b"".join(varint(size) for size in coded.tables.shape) + _halves(coded.tables)
        body += _grids(coded.scales)
        body += _integers(coded.indices)
    body += _outliers(coded.outliers)
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


def unpack(data: bytes, shape: Shape, *, depth: int = 0) -> Coded:
    """Return the coded matrix that bytes hold.

    Parameters
    ----------
    shape : tuple of int
        What the model expects.

    Raises
    ------
    BadArtifact
        If the bytes are truncated, changed, of a later version or not those of such a matrix.
    """
    if len(data) < 6 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise _damaged("its checksum does not match")
    if data[0] > VERSION:
        raise BadArtifact(f"coded matrix: written by a newer isthmus (version {data[0]}); upgrade isthmus")
    reader = _Reader(data[:-4], at=2)
    scheme = next((kind for kind, number in _SCHEMES.items() if number == data[1]), None)
    if data[0] < 1 or scheme is None or (scheme in (Product, Sum) and depth):
        raise _damaged(f"version {data[0]}, scheme {data[1]}")
    coded: Coded = _READERS[scheme](reader, shape)
    if reader.left:
        raise _damaged(f"{reader.left} bytes are left over")
    return coded


def _read_product(reader: _Reader, shape: Shape) -> Product:
    rank = reader.number(least=1, most=min(shape))
    left, right = (_read_within(reader, inner) for inner in ((shape[0], rank), (rank, shape[1])))
    return Product(left, right, _read_outliers(reader, shape))


def _read_sum(reader: _Reader, shape: Shape) -> Sum:
    parts: list[Uniform | Codebook] = []
    for _ in range(reader.number(least=2, most=MOST_PARTS)):
        parts.append(_read_within(reader, shape))
        # Seen before the next part is read: what is held stays in proportion to the matrix.
        if _integers_of(parts) > 2 * math.prod(shape):
            raise _damaged("the parts of a sum hold more than two integers a weight")
    return Sum(tuple(parts), _read_grids(reader, shape), _read_outliers(reader, shape))


def _within(coded: Uniform | Codebook) -> bytes:
    """Return a code that is part of another: its length and its blob."""
    inner = pack(coded)
    return varint(len(inner)) + inner


def _read_within(reader: _Reader, shape: Shape) -> Uniform | Codebook:
    coded = unpack(reader.take(reader.number(least=6)), shape, depth=1)
    assert isinstance(coded, Uniform | Codebook)  # at this depth nothing else is read
    return coded


def _addable(parts: Sequence[Uniform | Codebook], shape: Shape) -> bool:
    fits = 2 <= len(parts) <= MOST_PARTS and all(part.shape == shape for part in parts)
    return fits and _integers_of(parts) <= 2 * math.prod(shape)


def _integers_of(parts: Sequence[Uniform | Codebook]) -> int:
    return sum((part.integers if isinstance(part, Uniform) else part.indices).size for part in parts)


def _read_uniform(reader: _Reader, shape: Shape) -> Uniform:
    scales = _read_grids(reader, shape, least=1)
    grid = (scales[0].shape[0], scales[0].shape[1])
    zeros = _read_integers(reader, grid) if reader.number(most=1) else None
    integers = _read_integers(reader, shape)
    return Uniform(integers, scales, zeros, _read_outliers(reader, shape))


def _read_codebook(reader: _Reader, shape: Shape) -> Codebook:
    down, across = reader.number(least=1, most=shape[0]), reader.number(least=1, most=shape[1])
    entries, size = reader.number(least=1, most=entropy.MOST_SYMBOLS), reader.number(least=1, most=shape[1])
    if shape[1] % size or across > shape[1] // size:
        raise _damaged(f"vectors of {size} in {across} blocks do not fill {shape[1]} columns")
    tables = reader.halves((down, across, entries, size))
    scales = _read_grids(reader, shape)
    indices = _read_integers(reader, (shape[0], shape[1] // size))
    if indices.min() < 0 or indices.max() >= entries:
        raise _damaged(f"an index is not below {entries}")
    return Codebook(tables, indices, scales, _read_outliers(reader, shape))


_READERS: dict[type, Any] = {
    Uniform: _read_uniform,
    Codebook: _read_codebook,
    Product: _read_product,
    Sum: _read_sum,
}


def _halves(array: Halves) -> bytes:
    return array.astype("<f2").tobytes()


def _grids(scales: tuple[Integers, ...]) -> bytes:
    head = varint(len(scales))
    return head + b"".join(varint(grid.shape[0]) + varint(grid.shape[1]) + _integers(grid) for grid in scales)


def _read_grids(reader: _Reader, shape: Shape, least: int = 0) -> tuple[Integers, ...]:
    grids = []
    for _ in range(reader.number(least=least, most=2)):
        size = reader.number(least=1, most=shape[0]), reader.number(least=1, most=shape[1])
        grid = _read_integers(reader, size)
        if grid.min() < -_LARGEST or grid.max() > _LARGEST:
            raise _damaged("a scale is beyond all bounds")
        grids.append(grid)
    return tuple(grids)


def _zeros(zeros: Integers | None) -> bytes:
    return b"\0" if zeros is None else b"\1" + _integers(zeros)


def _outliers(outliers: Outliers | None) -> bytes:
    if outliers is None or not len(outliers.places):
        return varint(0)
    gaps = np.diff(outliers.places, prepend=-1) - 1
    return varint(len(gaps)) + b"".join(varint(gap) for gap in gaps.tolist()) + _halves(outliers.values)


def _read_outliers(reader: _Reader, shape: Shape) -> Outliers | None:
    count = reader.number(most=math.prod(shape))
    if not count:
        return None
    if count > reader.left:  # a gap takes a byte at least
        raise _damaged(f"{count} outliers do not fit")
    gaps = np.array([reader.number() for _ in range(count)], dtype=np.int64)
    places = np.cumsum(gaps + 1) - 1
    if places[-1] >= math.prod(shape):
        raise _damaged("an outlier lies outside the matrix")
    return Outliers(places, reader.halves((count,)))


def _integers(matrix: Integers) -> bytes:
    """Return a matrix of integers as a stream, with the classes of rows and columns that make it shortest.

    What is beyond a bound is coded as the bound; by how much it is beyond comes after the stream.
    """
    bound = _bound(matrix)
    within = np.clip(matrix, -bound, bound)
    beyond = np.abs(matrix[np.abs(matrix) >= bound].astype(np.int64)) - bound
    tail = varint(bound) + b"".join(varint(number) for number in beyond.tolist())
    classes = best_classes(within)
    stream = entropy.encode(parts_of(within, classes))
    return classes.head() + varint(len(stream)) + stream + tail


def _bound(matrix: Integers) -> int:
    """Return the bound that makes the stream shortest: a wide alphabet takes a long table."""
    most = int(np.abs(matrix).max()) + 1
    bounds = [bound for bound in _BOUNDS if bound < most] + ([most] if most <= _BOUNDS[-1] else [])
    if len(bounds) == 1:
        return bounds[0]
    counts = np.bincount(np.abs(matrix).ravel(), minlength=most + 1)  # nothing is at the largest bound
    signed = int(matrix.min()) < 0

    def size(bound: int) -> float:
        within = counts[: bound + 1].copy()
        within[-1] += counts[bound + 1 :].sum()
        # Either sign is as likely where both occur, and each number beyond takes two bytes or so.
        both = np.concatenate([within[:0:-1] / 2, within[:1], within[1:] / 2]).astype(np.int64) if signed else within
        return entropy.coded_bytes(both[None, :]) + 2 * float(within[-1])

    return min(bounds, key=size)


def _read_classes(reader: _Reader, columns: int) -> Classes:
    edges = tuple(reader.number() for _ in range(reader.number(most=max(ROW_CLASSES) - 1)))
    if list(edges) != sorted(edges):
        raise _damaged("the classes of rows are not in order")
    if not reader.number(most=1):
        return Classes(edges, None)
    bits = np.unpackbits(np.frombuffer(reader.take(-(-columns * COLUMN_BITS // 8)), dtype=np.uint8))
    pairs = bits[: columns * COLUMN_BITS].reshape(columns, COLUMN_BITS)
    return Classes(edges, (pairs[:, 0] * 2 + pairs[:, 1]).astype(np.uint8))


def _read_integers(reader: _Reader, shape: Shape) -> Integers:
    classes = _read_classes(reader, shape[1])
    decoder = entropy.Decoder(reader.take(reader.number()), math.prod(shape))
    matrix = np.empty(shape, dtype=np.int32)
    total = np.zeros(shape[0], dtype=np.int64)
    step = classes.step(shape[1])
    for start in range(0, shape[1], step):
        columns = min(step, shape[1] - start)
        block = decoder.take(classes.contexts(total, start, columns)).reshape(-1, columns)
        matrix[:, start : start + columns] = block
        if classes.edges:
            total += magnitude(block)
    decoder.close()
    bound = reader.number(least=1, most=_BOUNDS[-1])
    if matrix.max() >= bound or matrix.min() <= -bound:  # seldom, and finding where takes long
        over = np.abs(matrix) >= bound
        beyond = np.array([reader.number(most=_FARTHEST) for _ in range(int(over.sum()))], dtype=np.int32)
        matrix[over] += np.sign(matrix[over]) * beyond
    return matrix


class _Reader:
    """Reads from the front of a blob, and never behind its end."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def number(self, *, least: int = 0, most: int = 1 << 34) -> int:
        found, self.at = read_varint(self.data, self.at, len(self.data))
        if not least <= found <= most:
            raise _damaged(f"{found} where {least} to {most} is possible")
        return found

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise _damaged(f"{count} bytes are announced and {self.left} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def halves(self, shape: tuple[int, ...]) -> Halves:
        array = np.frombuffer(self.take(2 * math.prod(shape)), dtype="<f2").reshape(shape)
        if not np.isfinite(array).all():
            raise _damaged("a scale or table is not finite")
        return array.astype(np.float16)


def _damaged(reason: str) -> BadArtifact:
    return BadArtifact(f"coded matrix: truncated or damaged ({reason}); restore the file or narrow the network again")
