"""Superfluous information: what a layer keeps of its input beyond the label, ``I(X; Z | Y)``."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isthmus.errors import BadInput
from isthmus.information.measuring import mutual_information
from isthmus.information.registry import Estimator, get
from isthmus.information.result import Information
from isthmus.information.samples import FEWEST

Array = npt.NDArray[np.generic]


def superfluous_information(
    x: npt.ArrayLike | Tensor,
    layer: npt.ArrayLike | Tensor,
    labels: npt.ArrayLike | Tensor,
    *,
    estimator: str | Estimator = "noisy",
    noise: float | None = None,
    seed: int = 0,
) -> Information:
    """Return ``I(X; Z | Y)``: the mean over labels of what input and layer share among the samples of one label.

    What Kawaguchi et al. 2023 (arXiv 2305.18887) call unnecessary information. For a layer that is a function of the
    input (and noise) alone it is also ``I(X; Z) - I(Z; Y)``.

    Parameters
    ----------
    x : array or tensor, shape ``(samples, dims)``
        The estimator ``noisy`` never looks at it.
    layer : array or tensor, shape ``(samples, width)``
    labels : array or tensor, shape ``(samples,)``
        Integers.
    estimator : str or Estimator
        One of `isthmus.information.ESTIMATORS`; within a label all are asked about the same kind of sides.
    noise : float or None
        Standard deviation of the noise added to the layer, in its units; needed for layers without noise of their own.
    seed : int

    Returns
    -------
    Information
        Without a null. The interval weighs those of the labels: it is wider than it need be where they err
        independently. Not estimable where one label's value is not.

    Raises
    ------
    BadInput
        If sides differ in length, labels are not integers, a label has fewer than 8 samples, or as
        `mutual_information` does.
    """
    chosen = get(estimator) if isinstance(estimator, str) else estimator
    left, right, classes = (_array(side) for side in (x, layer, labels))
    if classes.ndim != 1 or classes.dtype.kind not in "iub":
        raise BadInput(f"labels of shape {classes.shape} and kind {classes.dtype}; give one integer for each sample")
    if not len(left) == len(right) == len(classes):
        raise BadInput(f"{len(left)} inputs, {len(right)} rows of a layer, {len(classes)} labels; give one of each")
    parts: list[tuple[float, Information]] = []
    for label, count in zip(*np.unique(classes, return_counts=True), strict=True):
        if count < FEWEST:
            raise BadInput(f"label {label} has {count} samples; give at least {FEWEST} of each, or leave it out")
        own = classes == label
        found = mutual_information(left[own], right[own], estimator=chosen, noise=noise, permutations=0, seed=seed)
        parts.append((count / len(classes), found))
        if found.nats is None:
            reason = f"label {label}: {found.not_estimable}"
            return Information(
                None, None, None, found.estimator, len(classes), found.dimensions, found.warnings, reason
            )
    nats = sum(share * (found.nats or 0.0) for share, found in parts)
    ends = [sum(share * found.interval[end] for share, found in parts if found.interval) for end in (0, 1)]
    warnings = tuple(dict.fromkeys(note for _, found in parts for note in found.warnings))
    last = parts[-1][1]
    return Information(nats, (ends[0], ends[1]), None, last.estimator, len(classes), last.dimensions, warnings)


def _array(side: npt.ArrayLike | Tensor) -> Array:
    return side.detach().cpu().numpy() if isinstance(side, torch.Tensor) else np.asarray(side)
