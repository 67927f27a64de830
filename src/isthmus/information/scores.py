"""Critics fitted to one half of the samples and read on the other, and what their scores amount to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from isthmus.information.canonical import canonical_ratio
from isthmus.information.critic import Critic, Objective, Recipe, Score, columns_of, train_critic
from isthmus.information.result import Side

Floats = npt.NDArray[np.float64]

ROWS = 500
MOST = 5000
"""Samples whose pairs are all scored: the cost grows with their square."""


@dataclass(frozen=True)
class Scores:
    """What is kept of the scores of all pairs of some samples.

    Parameters
    ----------
    together : ndarray, shape ``(samples,)``
        Scores of the pairs that were drawn together.
    rows, columns : ndarray, shape ``(samples,)``
        Log of the mean exponential of a row or column, the pair that was drawn together among them.
    apart : tuple of ndarray
        The same without that pair.
    shuffled : ndarray, shape ``(permutations,)``
        Mean scores of pairs put together at random.
    """

    together: Floats
    rows: Floats
    columns: Floats
    apart: tuple[Floats, Floats]
    shuffled: Floats

    @property
    def contrast(self) -> Floats:
        """InfoNCE of each sample, both ways of normalising in the mean (Poole et al. 2019, equation 10)."""
        return self.together - 0.5 * (self.rows + self.columns)


@dataclass(frozen=True)
class Fold:
    """One critic: on the samples that it was not fitted to, on as many that it was, and its base alone."""

    out: Scores
    inside: Scores
    base: Scores | None


def scored(
    score: Score, x: torch.Tensor, y: torch.Tensor, clip: float | None = None, permutations: int = 0, seed: int = 0
) -> Scores:
    """Return the scores of all pairs; ``clip`` bounds those that are exponentiated, both ways."""
    x, y = x[:MOST], y[:MOST]
    size = len(x)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(size, generator=generator) for _ in range(permutations)] or [torch.arange(0)])
    together, rows, apart_rows = [], [], []
    columns = apart_columns = torch.full((size,), -torch.inf)
    shuffled = torch.zeros(permutations, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, size, ROWS):
            part = score(x[start : start + ROWS], y)
            here = torch.arange(len(part))
            together.append(part[here, here + start])
            if permutations:
                shuffled += part.gather(1, orders[:, start : start + ROWS].T).double().sum(0)
            if clip is not None:
                part = part.clamp(-clip, clip)
            rows.append(part.logsumexp(1))
            columns = torch.logaddexp(columns, part.logsumexp(0))
            part[here, here + start] = -torch.inf
            apart_rows.append(part.logsumexp(1))
            apart_columns = torch.logaddexp(apart_columns, part.logsumexp(0))
    whole, less = np.log(size), np.log(max(size - 1, 1))
    return Scores(
        _array(torch.cat(together)),
        _array(torch.cat(rows)) - whole,
        _array(columns) - whole,
        (_array(torch.cat(apart_rows)) - less, _array(apart_columns) - less),
        _array(shuffled / size),
    )


def crossfit(
    x: Side,
    y: Side,
    objective: Objective,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    base: bool = False,
    clip: float | None = None,
    permutations: int = 0,
) -> tuple[Fold, Fold]:
    """Fit a critic to each half of the samples and return the scores of both."""
    left, right = columns_of(x), columns_of(y)
    order = torch.from_numpy(rng.permutation(len(left)))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    folds = []
    for fit, held in (halves, halves[::-1]):
        seed = int(rng.integers(2**31))
        start = _base(left[fit], right[fit], x, y) if base else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = Critic(left.shape[1], right.shape[1], recipe, start)
        seen = fit[train_critic(critic, left[fit], right[fit], objective, recipe, seed)]
        folds.append(
            Fold(
                scored(critic, left[held], right[held], clip, permutations, seed),
                scored(critic, left[seen], right[seen], clip),
                None if start is None else scored(start, left[held], right[held], clip),
            )
        )
    return folds[0], folds[1]


def _base(left: torch.Tensor, right: torch.Tensor, x: Side, y: Side) -> Score:
    # The columns that say how far out a sample is are no part of the Gaussian.
    width = x.values.shape[1] if x.kind == "continuous" else left.shape[1]
    other = y.values.shape[1] if y.kind == "continuous" else right.shape[1]
    return canonical_ratio(left[:, :width].double().numpy(), right[:, :other].double().numpy())


def _array(tensor: torch.Tensor) -> Floats:
    return tensor.double().numpy()
