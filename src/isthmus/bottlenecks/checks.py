"""What every coder asks of a matrix before it codes it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadInput


def check_matrix(weight: npt.NDArray[np.float32]) -> None:
    """Refuse what cannot be coded.

    Raises
    ------
    BadInput
        If it is no matrix, is empty, or holds a weight that is not a finite number.
    """
    if weight.ndim != 2 or not weight.size:
        raise BadInput(f"a matrix of shape {list(weight.shape)} cannot be coded; it takes rows and columns")
    if not np.isfinite(weight).all():
        row, column = np.argwhere(~np.isfinite(weight))[0]
        raise BadInput(f"the weight at row {row}, column {column} is not a finite number; mend it before coding")
