"""Maestro: factors trained so that any prefix of their inner dimension is a good lower rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isthmus.bottlenecks.checks import check_matrix
from isthmus.errors import BadInput

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RankPrefix:
    """How factors with ordered ranks are trained.

    Parameters
    ----------
    rank : int
        The largest.
    steps : int
    rate : float
        The largest step size of Adam, which falls to nothing along half a cosine.
    penalty : float
        Weight of the group lasso, in shares of the outputs' mean square.
    seed : int
        Of the start and of the ranks that are drawn.
    """

    name: ClassVar[str] = "maestro"
    slug: ClassVar[str | None] = "maestro"
    family: ClassVar[str] = "low-rank"

    rank: int
    steps: int = 2000
    rate: float = 0.05
    penalty: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Factors:
    """Factors by falling importance: the first ``b`` columns of ``left`` times the first ``b`` rows of ``right``.

    Parameters
    ----------
    left : ndarray of float32, shape ``(rows, rank)``
    right : ndarray of float32, shape ``(rank, columns)``
    """

    left: Floats
    right: Floats

    def used(self, share: float = 1e-3) -> int:
        """Return after which rank all that follows is smaller than a share of the largest: it has shrunk away."""
        sizes = np.linalg.norm(self.left, axis=0) * np.linalg.norm(self.right, axis=1)
        large = np.flatnonzero(sizes > share * float(sizes.max()))
        return int(large[-1]) + 1 if len(large) else 0


def train(weight: Floats, moments: Floats | None, recipe: RankPrefix) -> Factors:
    r"""Return factors of a linear map, trained by generalised ordered dropout (Horváth et al. 2023).

    Each step draws a rank ``b`` from 1 to ``recipe.rank`` and lowers, by Adam,

    .. math:: E ||W x - U_{:b} V_{:b} x||^2 / E ||W x||^2
              + penalty \sum_{i} (||U_{i:}|| + ||V_{i:}||)

    where ``i:`` is the suffix from rank ``i`` on, so that later ranks are in more groups and vanish first. One choice
    of factors is best for all prefixes at once, the singular vectors of ``W`` for white inputs and else the principal
    components of the outputs; so without a penalty the draws leave no noise at the end. Expectations are taken exactly,
    from the moments, and ``V`` is trained (and its norms are taken) in coordinates in which the inputs are white.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    moments : ndarray of float32, shape ``(columns, columns)``, or None
        The mean of ``x x^T`` over inputs; None stands for white inputs.
    recipe : RankPrefix

    Raises
    ------
    BadInput
        If a weight or moment is not a finite number, or the rank is not between 1 and rows and columns.
    """
    check_matrix(weight)
    rows, columns = weight.shape
    if not 1 <= recipe.rank <= min(rows, columns):
        raise BadInput(f"rank {recipe.rank} of a matrix of shape {[rows, columns]}; take 1 to the smaller side")
    if moments is not None and (moments.shape != (columns, columns) or not np.isfinite(moments).all()):
        raise BadInput(f"moments of shape {list(moments.shape)} for {columns} columns; measure them on finite inputs")
    root, back = _root(moments, columns)
    target = torch.from_numpy(weight.astype(np.float64) @ root)
    scale = float(target.square().sum()) or 1.0
    generator = torch.Generator().manual_seed(recipe.seed)
    size = (float(target.square().mean()) / recipe.rank) ** 0.25
    left = (size * torch.randn(rows, recipe.rank, generator=generator, dtype=torch.float64)).requires_grad_()
    right = (size * torch.randn(recipe.rank, columns, generator=generator, dtype=torch.float64)).requires_grad_()
    adam = torch.optim.Adam([left, right], lr=recipe.rate * (size or 1.0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, recipe.steps)
    drawn = torch.randint(1, recipe.rank + 1, (recipe.steps,), generator=generator)
    for held in drawn.tolist():
        adam.zero_grad()
        loss = (target - left[:, :held] @ right[:held]).square().sum() / scale
        if recipe.penalty:
            loss = loss + recipe.penalty * (_suffixes(left.T) + _suffixes(right))
        loss.backward()
        adam.step()
        schedule.step()
    return Factors(left.detach().float().numpy(), (right.detach().numpy() @ back).astype(np.float32))


def _suffixes(factor: Tensor) -> Tensor:
    """Return the sum of the norms of all suffixes of rows of a factor ``(rank, size)``."""
    tails = factor.square().sum(1).flip(0).cumsum(0)
    return (tails + 1e-24).sqrt().sum()


def _root(moments: Floats | None, columns: int) -> tuple[Doubles, Doubles]:
    """Return a root of the moments, and its inverse on the directions that inputs have."""
    if moments is None:
        return np.eye(columns), np.eye(columns)
    values, directions = np.linalg.eigh((moments.astype(np.float64) + moments.T) / 2)
    held = values > 1e-9 * max(float(values.max()), 0.0)
    root = np.sqrt(np.where(held, values, 0.0))
    return directions * root, (directions * np.divide(1.0, root, out=np.zeros_like(root), where=held)).T
