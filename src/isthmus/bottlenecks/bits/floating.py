"""ZeroQuant(4+2): weights as floating-point numbers of six bits, split in four and two for storage.

Wu et al. 2023, arXiv 2312.08583. A code is a sign, three bits of exponent ``e`` (bias 3) and two of mantissa ``m``:
``(1 + m / 4) 2 ** (e - 3)``, or ``m / 4 * 2 ** -2`` where ``e`` is 0. There are no infinities; the largest is 28.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.bottlenecks.bits.grid import covering, groups, peaks, spread
from isthmus.bottlenecks.checks import check_matrix
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput
from isthmus.storage.coded import Codebook

LARGEST = 28.0
_LOWEST, _BIAS, _MANTISSA = -2, 3, 2

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fp6:
    """Six-bit floating point, e3m2, with one scale for a row.

    The indices of the code are the six-bit codes and its one table is what they stand for. (As integers in 16ths they
    would be exact too, but spread so wide that they pack a little worse.) The scale is the row's largest magnitude over
    28, to the nearest 16th of an octave at which no weight clips.
    """

    name: ClassVar[str] = "fp6"
    slug: ClassVar[str | None] = "zeroquant-4plus2"
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return the one setting: 6 bits, a scale for each row."""
        return (Setting(6),)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Codebook:
        """Return the code of a matrix of shape ``(rows, columns)``.

        Raises
        ------
        BadInput
            If a weight is not a finite number, or the setting has other than 6 bits.
        """
        check_matrix(weight)
        if setting.bits != 6:
            raise BadInput(f"setting: {setting.bits:g} bits a weight; this floating point has 6")
        slack = 2.0  # the step at 28 is 4
        exponents = covering(peaks(weight, groups(weight.shape[1], setting.group)), LARGEST, slack)
        codes = fp6_codes(nearest_fp6(weight / spread(exponents, (weight.shape[0], weight.shape[1]))))
        return Codebook(fp6_values().astype(np.float16).reshape(1, 1, -1, 1), codes.astype(np.int32), (exponents,))


def nearest_fp6(numbers: Floats) -> Floats:
    """Return the nearest six-bit floating-point values, ties to the even mantissa; 28 is the largest."""
    _, exponents = np.frexp(numbers)
    shift = np.maximum(exponents - 1, _LOWEST) - _MANTISSA
    nearest = np.ldexp(np.rint(np.ldexp(numbers, -shift)), shift)
    return np.asarray(np.clip(nearest, -LARGEST, LARGEST), dtype=np.float32)


def fp6_values() -> Floats:
    """Return what the 64 codes stand for, shape ``(64,)``; 0 and 32 both are zero."""
    codes = np.arange(64)
    exponent, mantissa = codes >> 2 & 7, codes & 3
    magnitude = np.where(exponent > 0, 4 + mantissa, mantissa) * np.exp2(np.maximum(exponent, 1) - _BIAS - _MANTISSA)
    return np.asarray(np.where(codes < 32, magnitude, -magnitude), dtype=np.float32)


def fp6_codes(values: Floats) -> Bytes:
    """Return the codes, 0 to 63, of values that six bits can say; of the two zeros the positive one.

    Raises
    ------
    BadInput
        If a value is not one of them.
    """
    table = fp6_values()[:32]
    magnitude = np.abs(values)
    codes = np.minimum(np.searchsorted(table, magnitude), 31)
    if not np.array_equal(table[codes], magnitude):
        raise BadInput("a number is no six-bit floating-point value; round with nearest_fp6 before")
    return np.where(values < 0, codes + 32, codes).astype(np.uint8)


def pack_4plus2(codes: Bytes) -> bytes:
    """Return six-bit codes as bytes: first the upper four bits of all, two a byte, then the lower two, four a byte.

    The upper part holds sign and exponent, the lower the mantissa. Of a multiple of four codes this takes exactly 6/16
    of the bytes of float16; otherwise each part is filled up to a whole byte.

    Parameters
    ----------
    codes : ndarray of uint8, any shape
        0 to 63.

    Raises
    ------
    BadInput
        If a code is above 63.
    """
    flat = np.asarray(codes, dtype=np.uint8).ravel()
    if flat.size and flat.max() > 63:
        raise BadInput(f"code {int(flat.max())} does not fit six bits; codes are 0 to 63")
    upper = np.pad(flat >> 2, (0, -flat.size % 2)).reshape(-1, 2)
    lower = np.pad(flat & 3, (0, -flat.size % 4)).reshape(-1, 4)
    fours: Bytes = upper[:, 0] | upper[:, 1] << 4
    twos: Bytes = lower[:, 0] | lower[:, 1] << 2 | lower[:, 2] << 4 | lower[:, 3] << 6
    return fours.tobytes() + twos.tobytes()


def unpack_4plus2(data: bytes, count: int) -> Bytes:
    """Return ``count`` six-bit codes from the bytes of `pack_4plus2`, shape ``(count,)``.

    Raises
    ------
    BadInput
        If there are fewer or more bytes than so many codes take.
    """
    split, whole = -(-count // 2), -(-count // 2) + -(-count // 4)
    if count < 0 or len(data) != whole:
        raise BadInput(f"{len(data)} bytes for {count} six-bit codes, which take {whole}; give the count packed")
    array = np.frombuffer(data, dtype=np.uint8)
    upper = (array[:split, None] >> np.array([0, 4], dtype=np.uint8) & 15).ravel()[:count]
    lower = (array[split:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8) & 3).ravel()[:count]
    return (upper << 2 | lower).astype(np.uint8)
