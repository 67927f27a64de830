"""Compress each side to few dimensions, then nearest neighbours among the codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import psi

from isthmus.errors import BadInput
from isthmus.information.ksg import ksg_parts
from isthmus.information.marginals import gaussianised
from isthmus.information.result import CC, CD, Estimate, Kinds, Side
from isthmus.information.ross import ross_parts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compressed:
    """``I(x'; y')`` of the codes of a linear autoencoder, by nearest neighbours (Butakov et al. 2024, section 3).

    The codes are the leading principal components; information of codes is at most that of what was coded, and what is
    lost with the other components is not known. The paper adds up entropies ``h(x') + h(y') - h(x', y')``, each with
    distances of its own, for codes of exactly as many dimensions as the data has. Where codes fill fewer, each entropy
    depends on how many and their sum falls without end, so here the three are taken at one distance a sample (Kraskov
    et al. 2004; with labels Ross 2014), and what they have in common cancels.

    Parameters
    ----------
    dims : int
        Of the codes, at the most.
    neighbours : int
    """

    name: ClassVar[str] = "compressed"
    about: ClassVar[str] = "principal components, then nearest neighbours; for sides that lie near few dimensions"
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
            parts = ross_parts(gaussianised(code), y.symbols, self.neighbours)
            return Estimate(float(parts.mean()), parts, warnings=tuple(filter(None, notes)))
        other, share = principal_components(y.values, self.dims)
        notes.append(_lost("y", share))
        parts = ksg_parts(gaussianised(code), gaussianised(other), self.neighbours)
        ceiling = float(psi(len(parts)))
        return Estimate(float(parts.mean()), parts, ceiling=ceiling, warnings=tuple(filter(None, notes)))


def principal_components(values: Floats, dims: int) -> tuple[Floats, float]:
    """Return the leading components, shape ``(samples, <= dims)``, and the share of the variance that they hold."""
    centred = values - values.mean(0)
    spreads, directions = np.linalg.eigh(centred.T @ centred)
    return centred @ directions[:, ::-1][:, :dims], float(spreads[::-1][:dims].sum() / max(spreads.sum(), 1e-300))


def _lost(name: str, kept: float) -> str:
    return f"{name}: the code holds {kept:.0%} of the variance" if kept < 0.95 else ""
