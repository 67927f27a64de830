"""Ridge regression in closed form, its penalty chosen by leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.audit.checks import Array

PENALTIES = tuple(10.0**power for power in range(-4, 5))


@dataclass(frozen=True)
class Ridge:
    """A fitted linear map to one number; ``penalty`` is on the squared weights, of inputs divided by ``scale``."""

    centre: Array
    scale: float
    weights: Array
    bias: float
    penalty: float

    def predict(self, inputs: Array) -> Array:
        """Return predictions, shape (examples,), for inputs (examples, width)."""
        return np.asarray((inputs - self.centre) / self.scale @ self.weights + self.bias, dtype=np.float64)


def fit_ridge(inputs: Array, targets: Array, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """Fit ``min |y - X w - b|**2 + penalty |w|**2`` for the penalty of least leave-one-out error.

    With ``X = U S V'`` centred and ``h_i = 1/n + sum_j U_ij**2 S_j**2 / (S_j**2 + penalty)``, the error of example i
    left out is ``(y_i - fit_i) / (1 - h_i)`` (Allen 1974): one decomposition serves all penalties.

    Parameters
    ----------
    inputs : array (examples, width)
        Divided by one number, so that a penalty means the same whatever their scale.
    targets : array (examples,)
    penalties : tuple of float
    """
    centre, mean = inputs.mean(axis=0), float(targets.mean())
    scale = float(np.sqrt(np.mean((inputs - centre) ** 2))) or 1.0
    left, singular, right = np.linalg.svd((inputs - centre) / scale, full_matrices=False)
    projected = left.T @ (targets - mean)
    errors = []
    for penalty in penalties:
        shrunk = singular**2 / (singular**2 + penalty)
        leverage = 1 / len(targets) + (left**2) @ shrunk
        residual = targets - mean - left @ (shrunk * projected)
        errors.append(float(np.mean((residual / np.maximum(1 - leverage, 1e-9)) ** 2)))
    penalty = penalties[int(np.argmin(errors))]
    weights = right.T @ (singular / (singular**2 + penalty) * projected)
    return Ridge(centre, scale, np.asarray(weights, dtype=np.float64), mean, penalty)
