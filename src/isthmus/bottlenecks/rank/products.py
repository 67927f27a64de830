"""What the coders by rank share: which ranks pay, and two factors as a code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput
from isthmus.storage.coded import FINENESS, Product, Uniform, scale_of

Doubles = npt.NDArray[np.float64]

_STEPS = 8
_LARGEST = 40 * FINENESS


def ranks(limit: int) -> tuple[int, ...]:
    """Return ranks from a limit down, each about the root of a half of the one before; none for a limit below 1."""
    return tuple(sorted({round(limit / 2 ** (step / 2)) for step in range(_STEPS)} - {0}, reverse=True))


def product(left: Doubles, right: Doubles, bits: float) -> Product:
    """Return two factors as integers with a scale for each inner dimension.

    Parameters
    ----------
    left : ndarray of float64, shape ``(rows, rank)``
    right : ndarray of float64, shape ``(rank, columns)``
    bits : float
        A whole number, 2 to 12: integers from ``-2 ** (bits - 1) + 1`` up to as much above zero.

    Raises
    ------
    BadInput
        If the bits are none of these.
    """
    if bits != int(bits) or not 2 <= bits <= 12:
        raise BadInput(f"factors of {bits:g} bits; take a whole number from 2 to 12")
    top = 2 ** (int(bits) - 1) - 1
    return Product(_uniform(left, top, axis=0), _uniform(right, top, axis=1))


def _uniform(factor: Doubles, top: int, axis: int) -> Uniform:
    largest = np.abs(factor).max(axis=axis, keepdims=True)
    # Rounded up, so that the largest number is not cut off.
    exponents = np.ceil(FINENESS * np.log2(np.where(largest > 0, largest, 1.0) / top)).astype(np.int32)
    exponents = exponents.clip(-_LARGEST, _LARGEST)
    integers = np.rint(factor / scale_of(exponents)).clip(-top, top).astype(np.int32)
    return Uniform(integers, (exponents,))
