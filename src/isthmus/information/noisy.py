"""A deterministic layer with noise: the entropy of a mixture of Gaussians, one at each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from isthmus.errors import BadInput
from isthmus.information.result import CC, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]

CHUNK = 1 << 22
"""Distances that are held at once."""


@dataclass(frozen=True)
class Noisy:
    """``I(X; T + N(0, s^2)) = h(T + N) - d/2 log(2 pi e s^2)``, T a function of X (Goldfeld et al. 2019, section 4).

    ``h(T + N)`` is the entropy of the mixture with a Gaussian at every sample of T. With a sample's own Gaussian
    counted the value is low, without it high; the estimate is between them and the interval covers both. X itself is
    not looked at. A side of n samples gives at most ``log n``.

    Parameters
    ----------
    noise : float
        ``s``, in the units of y.

    Raises
    ------
    BadInput
        If the noise is not a positive number.
    """

    name: ClassVar[str] = "noisy"
    about: ClassVar[str] = "a deterministic layer plus stated Gaussian noise: entropy of a mixture"
    paper: ClassVar[str] = "Goldfeld et al. 2019, arXiv 1810.05728"
    slug: ClassVar[str | None] = "ib-lossy-compression"
    kinds: ClassVar[tuple[Kinds, ...]] = (CC,)

    noise: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.noise) and self.noise > 0):
            raise BadInput(f"noise {self.noise!r}; give a positive standard deviation, in the units of y")

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate; ``y`` holds the layer without noise."""
        clean = y.values / self.noise
        drawn = clean + rng.normal(size=clean.shape)
        with_own, without = mixture_logs(drawn, clean)
        own = -0.5 * np.square(drawn - clean).sum(1)
        low, high = own - with_own, own - without
        middle = 0.5 * (low + high)
        error = 1.96 * middle.std() / np.sqrt(len(middle))
        interval = (max(float(low.mean() - error), 0.0), float(high.mean() + error))
        return Estimate(float(middle.mean()), middle, interval, ceiling=float(np.log(len(clean))))


def mixture_logs(points: Floats, centres: Floats) -> tuple[Floats, Floats]:
    """Return the log of the mean unnormalised Gaussian of each point over all centres, and over all but its own.

    Parameters
    ----------
    points, centres : ndarray of float64, shape ``(samples, dims)``
        In units of the noise.
    """
    every = torch.from_numpy(np.ascontiguousarray(centres))
    rows = max(1, CHUNK // len(centres))
    found: list[torch.Tensor] = []
    for start, part in zip(range(0, len(points), rows), torch.split(torch.from_numpy(points), rows), strict=True):
        logs = -0.5 * torch.cdist(part, every).square()
        whole = logs.logsumexp(1)
        logs[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
        found.append(torch.stack([whole - np.log(len(centres)), logs.logsumexp(1) - np.log(len(centres) - 1)]))
    both = torch.cat(found, 1).numpy()
    return both[0], both[1]
