"""ALDS (Liebenwein et al. 2021): slices and ranks of all layers chosen by the largest error bound.

20 points of half a minute to a minute on one core: a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from claims.coding import ROW, Arm, Claim, Point, Settings, Workbench
from claims.common import Outcome
from claims.equal_bytes import against, part_of, share_passed
from claims.vtrans import Part
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.coder import Coder, Floats, Setting
from isthmus.bottlenecks.rank.alds import Alds, choose, sliced
from isthmus.bottlenecks.rank.factors import LowRank
from isthmus.storage.coded import Coded, decode

Weights = Mapping[str, Floats]

SHARES = (0.8, 0.65, 0.5, 0.4, 0.3)
ROUNDING = 1e-6
BISECTIONS = 40
ALDS, UNIFORM, ENERGY, WEIGHTED = "alds", "uniform rank", "energy", "uniform rank, weighted"
_WHOLE: tuple[Coder, Setting] = (FineQuant(), Setting(8, ROW))
"""For a matrix that no rank is chosen for: 8 bits, like the factors of the others."""


def _numbers(weights: Weights) -> int:
    return sum(weight.size for weight in weights.values())


def by_bound(share: float, weights: Weights) -> Settings:
    """Return ranks and slices by the method's own choice at a share of the numbers."""
    chosen = choose(weights, int(share * _numbers(weights)))
    return {
        name: (Alds(), one.setting(weights[name].shape[1])) if one.slices else _WHOLE for name, one in chosen.items()
    }


def by_share(share: float, weights: Weights, coder: Coder | None = None) -> Settings:
    """Return for every matrix the rank whose factors hold this share of its numbers."""
    found = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        rank = max(1, int(share * rows * columns / (rows + columns)))
        found[name] = (coder, Setting(8, 0, rank)) if coder else (Alds(), Setting(8, columns, rank))
    return found


def by_share_weighted(share: float, weights: Weights) -> Settings:
    """Return the same ranks for the SVD that is weighted by inputs and outputs."""
    return by_share(share, weights, LowRank())


def by_energy(share: float, weights: Weights) -> Settings:
    """Return the ranks that keep one share of every matrix's squared norm, as much as the numbers allow."""
    kept = {name: np.cumsum(np.linalg.svd(weight, compute_uv=False) ** 2) for name, weight in weights.items()}
    budget = share * _numbers(weights)

    def ranks(energy: float) -> dict[str, int]:
        """Return ranks; 0 where factors would hold no fewer numbers than the matrix."""
        found = {}
        for name, own in kept.items():
            rows, columns = weights[name].shape
            rank = 1 + int(np.searchsorted(own[:-1], energy * own[-1]))
            found[name] = rank if rank * (rows + columns) < rows * columns else 0
        return found

    def total(found: Mapping[str, int]) -> int:
        return sum(rank * sum(weights[name].shape) or weights[name].size for name, rank in found.items())

    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(ranks(middle)) <= budget else (low, middle)
    return {
        name: (Alds(), Setting(8, weights[name].shape[1], rank)) if rank else _WHOLE
        for name, rank in ranks(low).items()
    }


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return the method's bound, the error of its factors and that of their code, by matrix, relative and spectral."""
    if arm.label != ALDS:
        return {}
    bounds = {}
    for name, (_, setting) in bench.settings(arm, point.level).items():
        if setting.rank:
            weight = bench.weights[name]
            slices = weight.shape[1] // setting.group
            left, right = sliced(weight, slices, setting.rank // slices)
            norm = spectral_norm(weight)
            errors = (spectral_norm(weight - left @ right), spectral_norm(weight - decode(codes[name])))
            bounds[name] = [bound(weight, slices, setting.rank // slices), *(error / norm for error in errors)]
    return {"bounds": bounds}


def spectral_norm(matrix: npt.NDArray[np.floating]) -> float:
    """Return the largest singular value, by the eigenvalues of the smaller product with itself."""
    tall = matrix.astype(np.float64)
    tall = tall if tall.shape[0] >= tall.shape[1] else tall.T
    return float(np.sqrt(max(np.linalg.eigvalsh(tall.T @ tall)[-1], 0.0)))


def bound(weight: Floats, slices: int, rank: int) -> float:
    r"""Return the bound on the relative error, :math:`\sqrt{k} \max_i \alpha_{i,j+1} / \alpha_1`."""
    parts = np.split(weight.astype(np.float64), slices, axis=1)
    beyond = max(np.append(np.linalg.svd(part, compute_uv=False), 0.0)[rank] for part in parts)
    return float(np.sqrt(slices) * beyond / spectral_norm(weight))


def bounded(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): no error exceeds its bound."""
    rule = (
        "on every matrix at every share the relative spectral error of the factors is at most the bound "
        f"(to {ROUNDING:g})"
    )
    rows = [row for one in outcomes if one["arm"] == ALDS for row in one["bounds"].values()]
    passed = [error <= limit + ROUNDING for limit, error, _ in rows]
    text = ""
    if rows:
        over = sum(coded > limit + ROUNDING for limit, _, coded in rows)
        tight = float(np.median([error / limit for limit, error, _ in rows if limit > 0]))
        text = (
            f"{sum(passed)} of {len(rows)}, the error being {tight:.0%} of the bound in the median; with factors of 8 "
            f"bits {over} exceed it"
        )
    return part_of("errors and bounds", rule, share_passed(passed), text)


def ahead(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): against the same rank everywhere and the same energy everywhere."""
    return against("against uniform rank and energy", outcomes, ALDS, [UNIFORM, ENERGY])


def _arm(label: str, decide: Callable[[float, Weights], Settings], coder: Coder) -> Arm:
    return Arm(label, SHARES, lambda _: (coder, Setting(8)), "{:.0%} of the numbers", decide=decide)


CLAIM = Claim(
    slug="alds",
    claim=(
        "Slicing layers and choosing slices and ranks of all of them by the largest error bound keeps more than the "
        "same rank or the same energy in every layer at equal size, and no layer's error exceeds its bound."
    ),
    experiment=(
        "Factors hold 80 to 30% of the numbers of all matrices, in 8 bits with a scale for each rank, entropy coded; "
        "matrices that no rank is chosen for are rounded to 8 bits. Zeros around sliced factors are stored, so slices "
        "cost bytes that the paper does not count. The baselines are the truncated SVD of every matrix at the same "
        "share or at the same share of its squared norm; that weighted by inputs and outputs, at the same share, is "
        "shown beside them. Before retraining only."
    ),
    arms=(
        _arm(ALDS, by_bound, Alds()),
        _arm(UNIFORM, by_share, Alds()),
        _arm(ENERGY, by_energy, Alds()),
        _arm(WEIGHTED, by_share_weighted, LowRank()),
    ),
    parts=lambda outcomes: [ahead(outcomes), bounded(outcomes)],
    observe=observe,
)
