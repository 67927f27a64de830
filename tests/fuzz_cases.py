"""Damaged blobs for the fuzzer: valid blobs of every scheme, what may happen to them, checksums made right again."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from isthmus.storage import blobs, entropy
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Codebook, Coded, Outliers, Product, Sum, Uniform

Shape = tuple[int, int]
Random = np.random.Generator

SEALED = 0.8
"""The share of inputs whose checksums are made right."""
_VARINTS = (0, 1, 2, 127, 128, 255, 4095, 4096, 65535, 1 << 20, (1 << 28) - 1, 1 << 31, (1 << 34) - 1, 1 << 34)


@dataclass(frozen=True)
class Case:
    """One input: the bytes, the shape that is expected of them, and how it was made."""

    data: bytes
    shape: Shape
    kind: str


def uniform(random: Random, rows: int, columns: int, *, zeros: bool = False, far: bool = False) -> Uniform:
    """Return a random `Uniform`: rows of unlike spread, so that they fall into classes."""
    spread = random.gamma(2.0, 0.7, (rows, 1))
    integers = np.rint(random.normal(0, 1, (rows, columns)) * spread).astype(np.int32)
    if far:
        integers[0, 0], integers[-1, -1] = 3000, -70_000
    grid = random.integers(-90, -20, (rows, max(1, columns // 16))).astype(np.int32)
    across = random.integers(-8, 8, (1, columns)).astype(np.int32)
    offsets = random.integers(-3, 4, grid.shape).astype(np.int32) if zeros else None
    return Uniform(integers, (grid, across), offsets)


def codebook(random: Random, rows: int, columns: int, size: int, *, scaled: bool = False) -> Codebook:
    """Return a random `Codebook` of ``columns`` vectors of ``size`` in a row."""
    tables = random.normal(0, 1, (2, 1, 6, size)).astype(np.float16)
    scales = (random.integers(-40, 40, (rows, 1)).astype(np.int32),) if scaled else ()
    return Codebook(tables, random.integers(0, 6, (rows, columns)).astype(np.int32), scales)


def seeds() -> list[Coded]:
    """Return one coded matrix of every scheme and variant."""
    random = np.random.default_rng(0)
    places = np.array([0, 7, 300], dtype=np.int64)
    outliers = Outliers(places, np.array([1.5, -2, 0.25], dtype=np.float16))
    across = uniform(random, 9, 80)
    product = Product(uniform(random, 14, 3), codebook(random, 3, 12, 2), outliers)
    return [
        uniform(random, 9, 40),
        uniform(random, 24, 100),
        uniform(random, 500, 200),
        uniform(random, 6000, 30),
        uniform(random, 12, 33, zeros=True),
        uniform(random, 10, 36, far=True),
        Uniform(uniform(random, 16, 48).integers, uniform(random, 16, 48).scales, None, outliers),
        Uniform(np.zeros((90, 80), dtype=np.int32), (np.zeros((1, 1), dtype=np.int32),)),
        codebook(random, 10, 20, 2),
        codebook(random, 12, 40, 4, scaled=True),
        product,
        Sum((codebook(random, 14, 12, 4, scaled=True), codebook(random, 14, 24, 2)), (), outliers),
        Sum((codebook(random, 60, 10, 8), codebook(random, 60, 10, 8), codebook(random, 60, 20, 4)), across.scales[1:]),
        Product(uniform(random, 20, 4), uniform(random, 4, 70)),
    ]


@cache
def valid_blobs() -> tuple[tuple[bytes, Shape], ...]:
    """Return the blobs of `seeds`, each with its shape."""
    return tuple((pack(coded), coded.shape) for coded in seeds())


def flip(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Flip a few bits."""
    for place in random.integers(0, len(data), random.integers(1, 5)):
        data[place] ^= 1 << int(random.integers(8))


def put(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Write random bytes over a stretch."""
    start = int(random.integers(0, len(data)))
    length = int(random.integers(1, 9))
    data[start : start + length] = random.bytes(min(length, len(data) - start))


def cut(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Take away the end or a stretch in the middle."""
    start = int(random.integers(0, len(data)))
    end = len(data) if random.random() < 0.5 else start + int(random.integers(1, 20))
    del data[start:end]


def extend(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Put bytes in at some place."""
    place = int(random.integers(0, len(data) + 1))
    data[place:place] = random.bytes(int(random.integers(1, 40)))


def splice(random: Random, data: bytearray, pool: Sequence[bytes]) -> None:
    """Go on with a stretch of another blob."""
    other = pool[int(random.integers(len(pool)))]
    start, end = sorted(random.integers(0, len(other) + 1, 2).tolist())
    place = int(random.integers(0, len(data) + 1))
    gone = end - start if random.random() < 0.5 else len(data)
    data[place : place + gone] = other[start:end]


def promise(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Put a number in place of one or two bytes near the front of the blob or anywhere: a header that promises more."""
    place = int(random.integers(2, min(len(data), 24) if random.random() < 0.5 else len(data)))
    number = int(random.choice(_VARINTS)) + int(random.integers(-1, 2))
    data[place : place + int(random.integers(0, 3))] = entropy.varint(max(number, 0))


MUTATIONS: tuple[Callable[[Random, bytearray, Sequence[bytes]], None], ...] = (flip, put, cut, extend, splice, promise)


class _Passing:
    """Stands for zlib in the readers: says that every checksum is right and notes what it was taken over."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def crc32(self, data: bytes) -> _Passing:
        self.seen.append(data)
        return self

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def resealed(data: bytes, shape: Shape) -> bytes:
    """Return the bytes with every checksum on the reader's way made right, the innermost first."""
    passing = _Passing()
    blobs.zlib = entropy.zlib = passing  # type: ignore[attr-defined, assignment]
    try:
        unpack(data, shape)
    except Exception:
        pass  # what goes wrong here goes wrong again when the real reader is given these bytes
    finally:
        blobs.zlib = entropy.zlib = zlib  # type: ignore[attr-defined]
    sealed = bytearray(data)
    for part in reversed(passing.seen):
        place = data.find(part)
        sealed[place + len(part) : place + len(part) + 4] = struct.pack(
            "<I", zlib.crc32(sealed[place : place + len(part)])
        )
    return bytes(sealed)


def make_case(seed: int, number: int, valid: Sequence[tuple[bytes, Shape]]) -> Case:
    """Return input ``number`` of a seed."""
    random = np.random.default_rng((seed, number))
    good, shape = valid[int(random.integers(len(valid)))]
    data, names = bytearray(good), []
    for _ in range(int(random.integers(1, 4))):
        mutation = MUTATIONS[int(random.integers(len(MUTATIONS)))]
        if len(data) > 4:
            mutation(random, data, [other for other, _ in valid])
            names.append(mutation.__name__)
    if random.random() < 0.15:
        rows, columns = shape
        most = 10**6
        others = [(columns, rows), (rows + 1, columns), (rows, columns + 1), (1, 1), (most, most), (1, rows * columns)]
        shape = others[int(random.integers(len(others)))]
        names.append("another shape")
    if random.random() < SEALED and len(data) > 6:
        return Case(resealed(bytes(data), shape), shape, "+".join([*names, "sealed"]))
    return Case(bytes(data), shape, "+".join(names))
