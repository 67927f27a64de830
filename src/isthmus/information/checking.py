"""Checking representations before anything is computed from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput

Floats = npt.NDArray[np.float64]


def representations(values: npt.ArrayLike, *, least: int = 2, what: str = "representations") -> Floats:
    """Return representations as a matrix of shape ``(samples, width)`` in float64.

    Parameters
    ----------
    values : array_like, shape ``(samples, width)``
    least : int
        Samples that are needed.
    what : str
        What messages call them.

    Raises
    ------
    BadInput
        If it is no matrix of numbers, has too few samples, or holds a value that is not finite.
    """
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInput(f"{what}: not numbers; give an array of shape (samples, width)") from None
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise BadInput(f"{what}: of shape {matrix.shape}; give an array of shape (samples, width)")
    if len(matrix) < least:
        raise BadInput(f"{what}: {len(matrix)} samples; give at least {least}")
    wrong = np.argwhere(~np.isfinite(matrix))
    if len(wrong):
        row, column = wrong[0]
        raise BadInput(
            f"{what}: {matrix[row, column]} at sample {row}, column {column}; take out what is not a finite number"
        )
    return matrix


def two_views(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return two views of the same samples, checked.

    Raises
    ------
    BadInput
        If one is no finite matrix, or they are not of one shape.
    """
    one, other = representations(first, what="first view"), representations(second, what="second view")
    if one.shape != other.shape:
        raise BadInput(f"views: of shapes {one.shape} and {other.shape}; give the same samples in the same order")
    return one, other
