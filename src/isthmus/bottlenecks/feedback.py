"""Error feedback: what rounding some columns loses, made good in those that follow (Frantar et al. 2023)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from isthmus.errors import BadInput

Doubles = npt.NDArray[np.float64]


def feedback_factor(hessian: Doubles) -> Doubles:
    """Return the upper Cholesky factor ``U`` of the inverse, ``H⁻¹ = Uᵀ U``, both ``(columns, columns)``.

    From any column on, the same part of ``U`` belongs to the inverse for the columns that are left, so one factor
    serves all steps of the feedback.

    Parameters
    ----------
    hessian : ndarray of float64, shape ``(columns, columns)``
        The moments of the inputs, damped.

    Raises
    ------
    BadInput
        If it is not positive definite, as the mean of ``x xᵀ`` is once damped.
    """
    try:
        # H = R Rᵀ with R upper gives U = R⁻¹: no inverse of H is ever formed.
        upper = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise BadInput("moments: not positive definite; collect them from more inputs or raise damping") from None
    return np.asarray(solve_triangular(upper, np.eye(len(hessian)), lower=False))


def damped(moments: npt.NDArray[np.float64], damping: float) -> npt.NDArray[np.float64]:
    """Return moments, ``(columns, columns)``, with a share of the mean of their diagonal added to it."""
    return np.asarray(moments + damping * (float(np.diag(moments).mean()) or 1.0) * np.eye(len(moments)))
