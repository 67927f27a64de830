"""A linear probe: what a linear classifier can read from embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PENALTY = 1e-2  # on the squared weights, beside the mean loss, at inputs of unit variance


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier.

    Parameters
    ----------
    centre : array (width,)
        What is subtracted from embeddings.
    weights : array (width, classes)
    bias : array (classes,)
    """

    centre: Array
    weights: Array
    bias: Array

    def logits(self, embeddings: Array) -> Array:
        """Return the logits of each row of an array (texts, width), shape (texts, classes)."""
        return np.asarray((embeddings - self.centre) @ self.weights + self.bias, dtype=np.float64)

    def predict(self, embeddings: Array) -> npt.NDArray[np.int64]:
        """Return the likeliest class of each row of an array (texts, width)."""
        return np.asarray(self.logits(embeddings).argmax(axis=1), dtype=np.int64)


def fit_probe(embeddings: Array, labels: npt.NDArray[np.integer], classes: int) -> Probe:
    """Fit a softmax regression with an L2 penalty by L-BFGS, from zero: no chance is involved.

    Embeddings are centred and divided by one number, so that the penalty means the same for networks whose
    embeddings differ in scale.

    Parameters
    ----------
    embeddings : array (texts, width)
    labels : array (texts,)
        From 0 to ``classes - 1``.
    classes : int

    Returns
    -------
    Probe
    """
    from scipy import optimize

    texts, width = embeddings.shape
    centre = embeddings.mean(axis=0)
    inputs = embeddings - centre
    scale = float(np.sqrt(np.mean(inputs**2)))
    scale = scale if scale > 0 else 1.0  # all embeddings are the same: only the bias can learn
    inputs = inputs / scale
    targets = np.eye(classes)[labels]

    def loss(flat: Array) -> tuple[float, Array]:
        weights, bias = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        outputs = inputs @ weights + bias
        outputs -= outputs.max(axis=1, keepdims=True)
        logarithms = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
        value = -float((targets * logarithms).sum()) / texts + 0.5 * PENALTY * float((weights**2).sum())
        error = (np.exp(logarithms) - targets) / texts
        gradient = np.concatenate(((inputs.T @ error + PENALTY * weights).ravel(), error.sum(axis=0)))
        return value, gradient

    start = np.zeros(width * classes + classes)
    fitted = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return Probe(centre, fitted[: width * classes].reshape(width, classes) / scale, fitted[width * classes :])
