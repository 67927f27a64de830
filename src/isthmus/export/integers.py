"""Integers of a matrix for other programs: rounded with scales a group, taken from its code, or packed into words."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd

import numpy as np
import numpy.typing as npt
import torch

from isthmus.storage.blobs import unpack
from isthmus.storage.coded import Uniform, block_size, scale_of, stretch

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

WORD = 32
LEAST_GROUP = 16
"""Groups of fewer columns are no layout's: their scales would take as much as is saved."""
_SHRINK = np.linspace(0.6, 1.1, 26)
"""Scales that are tried, as shares of the one at which the largest weight takes the largest integer."""


def round_to_nearest(weight: Floats, bits: int, group: int, dtype: torch.dtype) -> tuple[Integers, Floats]:
    """Round a matrix with the scales of least squared error.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    bits : int
    group : int
        Columns that share a scale, a divisor of them all; 0 for a scale a row.
    dtype : torch.dtype
        Scales are rounded to it before the integers are chosen.

    Returns
    -------
    integers : ndarray of int32, shape ``(rows, columns)``
        From ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``.
    scales : ndarray of float32, shape ``(rows, columns / group)``, or ``(rows, 1)`` for a group of 0
    """
    rows, columns = weight.shape
    half = 1 << (bits - 1)
    grouped = weight.reshape(rows, -1, group or columns)
    largest = np.abs(grouped).max(-1, keepdims=True) / (half - 1)
    scales = best = np.zeros_like(largest)
    for share in _SHRINK:
        # Between the smallest normal number and nothing, halves lose their digits.
        trial = torch.from_numpy((share * largest).astype(np.float32)).clamp(min=torch.finfo(dtype).tiny)
        tried: Floats = trial.to(dtype).float().numpy()
        integers = np.clip(np.rint(grouped / tried), -half, half - 1)
        error = ((integers * tried - grouped) ** 2).sum(-1, keepdims=True)
        better = (error < best) | (scales == 0)
        scales, best = np.where(better, tried, scales), np.where(better, error, best)
    integers = np.clip(np.rint(grouped / scales), -half, half - 1).astype(np.int32)
    return integers.reshape(rows, columns), scales[..., 0]


def pack_words(integers: Integers, bits: int) -> Integers:
    """Put the integers of each row side by side in words of 32 bits, the first in the lowest bits.

    Parameters
    ----------
    integers : ndarray of int32, shape ``(rows, columns)``
        From ``-2**(bits - 1)``, which is stored as 0.
    bits : {4, 8}

    Returns
    -------
    ndarray of int32, shape ``(rows, ceil(columns * bits / 32))``
        What is left of the last word is 0.
    """
    rows, columns = integers.shape
    held = WORD // bits
    stored = (integers + (1 << (bits - 1))).astype(np.uint32)
    filled = np.pad(stored, ((0, 0), (0, -columns % held))).reshape(rows, -1, held)
    shifts = np.arange(held, dtype=np.uint32) * np.uint32(bits)
    words: Integers = np.bitwise_or.reduce(filled << shifts, axis=-1).view(np.int32)
    return words


def own_integers(code: bytes, shape: tuple[int, int], bits: int, group: int) -> tuple[Integers, Floats] | None:
    """Return a code's own integers and scales, or None where a layout cannot hold them.

    Parameters
    ----------
    code : bytes
        As a file holds it.
    shape : tuple of int
        ``(rows, columns)``.
    bits, group : int
        As for `round_to_nearest`.

    Returns
    -------
    tuple of ndarray or None
        Of the shapes that `round_to_nearest` returns.
    """
    coded = _fitting(code, shape, bits)
    if coded is None:
        return None
    scales = np.ones(coded.shape, dtype=np.float32)
    for grid in coded.scales:
        scales *= stretch(scale_of(grid), coded.shape)
    grouped = scales.reshape(shape[0], -1, group or shape[1])
    return (coded.integers, grouped[..., 0]) if (grouped == grouped[..., :1]).all() else None


def shared_group(codes: Iterable[tuple[bytes, tuple[int, int]]], bits: int) -> int | None:
    """Return the most columns in a group such that every code that fits otherwise is held; 0 for a scale a row.

    Parameters
    ----------
    codes : iterable of (bytes, shape)
    bits : int

    Returns
    -------
    int or None
        None where no code fits, or only groups of fewer than 16 columns would hold them.
    """
    widths, by_row = [], True
    for code, shape in codes:
        coded = _fitting(code, shape, bits)
        if coded is not None:
            width = gcd(shape[1], *(block_size(shape[1], grid.shape[1]) for grid in coded.scales))
            if width >= LEAST_GROUP or width == shape[1]:
                widths.append(width)
                by_row = by_row and width == shape[1]
    if not widths:
        return None
    return 0 if by_row else group if (group := gcd(*widths)) >= LEAST_GROUP else None


def _fitting(code: bytes, shape: tuple[int, int], bits: int) -> Uniform | None:
    """Return a code of integers times scales that so many bits hold."""
    coded = unpack(code, shape)
    if not isinstance(coded, Uniform) or coded.zeros is not None or coded.outliers is not None:
        return None
    half = 1 << (bits - 1)
    return coded if coded.integers.min() >= -half and coded.integers.max() < half else None
