"""Compress each side to few dimensions, then nearest-neighbour entropies of the codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import psi

from isthmus.errors import BadInput
from isthmus.information.marginals import standardised
from isthmus.information.neighbours import kth_distances
from isthmus.information.result import CC, CD, Estimate, Kinds, Side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compressed:
    """``h(x') + h(y') - h(x', y')`` of the codes of a linear autoencoder (Butakov et al. 2024, section 3).

    The codes are the leading principal components; information of codes is at most that of what was coded, and what is
    lost with the other components is not known. Entropies are those of Kozachenko and Leonenko. With labels it is
    ``h(x') - sum p h(x' | label)``.

    Parameters
    ----------
    dims : int
        Of the codes, at the most.
    neighbours : int
    """

    name: ClassVar[str] = "compressed"
    about: ClassVar[str] = "principal components, then k-NN entropies; for sides that lie near few dimensions"
    paper: ClassVar[str] = "Butakov et al. 2024, arXiv 2305.08013"
    slug: ClassVar[str | None] = "ib-lossy-compression"
    kinds: ClassVar[tuple[Kinds, ...]] = (CC, CD)

    dims: int = 4
    neighbours: int = 5

    def __post_init__(self) -> None:
        if self.dims < 1 or self.neighbours < 1:
            raise BadInput(f"{self.dims} dimensions, {self.neighbours} neighbours; give at least one of each")

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate."""
        code, kept = principal_components(x.values, self.dims)
        notes = [_lost("x", kept)]
        if y.kind == "discrete":
            return Estimate(*self._given_labels(standardised(code), y.symbols), warnings=tuple(filter(None, notes)))
        other, share = principal_components(y.values, self.dims)
        notes.append(_lost("y", share))
        # Not ranks: they are spaced evenly, and the entropy is read off how unevenly samples are spaced.
        sides = [standardised(code), standardised(other)]
        parts = [entropy_parts(side, self.neighbours) for side in (*sides, np.hstack(sides))]
        found = parts[0] + parts[1] - parts[2]
        return Estimate(float(found.mean()), found, warnings=tuple(filter(None, notes)))

    def _given_labels(self, code: Floats, labels: npt.NDArray[np.int64]) -> tuple[float, Floats]:
        parts = entropy_parts(code, self.neighbours)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            if len(own) <= self.neighbours:
                raise BadInput(f"a label has {len(own)} samples; entropies take more than {self.neighbours} of each")
            parts[own] -= entropy_parts(code[own], self.neighbours)
        return float(parts.mean()), parts


def principal_components(values: Floats, dims: int) -> tuple[Floats, float]:
    """Return the leading components, shape ``(samples, <= dims)``, and the share of the variance that they hold."""
    centred = values - values.mean(0)
    spreads, directions = np.linalg.eigh(centred.T @ centred)
    return centred @ directions[:, ::-1][:, :dims], float(spreads[::-1][:dims].sum() / max(spreads.sum(), 1e-300))


def entropy_parts(points: Floats, neighbours: int) -> Floats:
    """Return what each sample adds to the entropy in nats, shape ``(samples,)``.

    ``psi(n) - psi(k) + d log(2 r)``, ``r`` the distance to the k-th neighbour in the maximum norm (Kozachenko and
    Leonenko 1987; Kraskov et al. 2004, equation 20).
    """
    radii = np.maximum(kth_distances(points, neighbours), 1e-300)
    return np.asarray(psi(len(points)) - psi(neighbours) + points.shape[1] * np.log(2 * radii), dtype=np.float64)


def _lost(name: str, kept: float) -> str:
    return f"{name}: the code holds {kept:.0%} of the variance" if kept < 0.95 else ""
