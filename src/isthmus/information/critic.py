"""A small network that scores pairs, trained to tell pairs that were drawn together from pairs that were not.

The score is ``base(x, y) + g(x) . h(y) + a(x) + b(y)``. It is separable, so that the scores of all pairs of a batch are
one matrix product. Where a base is given (the log-density ratio of a Gaussian) training starts exactly from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr
from torch import nn

from isthmus.information.marginals import gaussianised
from isthmus.information.result import Side

Floats = npt.NDArray[np.float64]
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Objective = Callable[[torch.Tensor], torch.Tensor]
"""From the scores of all pairs of a batch, shape ``(batch, batch)``, drawn together on the diagonal, to a loss."""


@dataclass(frozen=True)
class Recipe:
    """How a critic is built and trained.

    Parameters
    ----------
    width, features : int
        Units of the two hidden layers of each side; dimensions of ``g`` and ``h``.
    steps, batch : int
        Steps of training at the most; samples a step.
    rate, decay : float
        Learning rate, at its height, and weight decay of AdamW.
    every, patience : int
        Steps between two looks at the samples put aside; looks without a gain after which training stops.
    """

    width: int = 64
    features: int = 32
    steps: int = 400
    batch: int = 256
    rate: float = 4e-3
    decay: float = 1e-2
    every: int = 25
    patience: int = 5


class Critic(nn.Module):
    """Scores of pairs; see the module.

    Parameters
    ----------
    left, right : int
        Columns of the two sides.
    recipe : Recipe
    base : callable or None
        Scores that training starts from.
    """

    def __init__(self, left: int, right: int, recipe: Recipe, base: Score | None = None) -> None:
        super().__init__()
        self.base = base
        self.x, self.y = _branch(left, recipe), _branch(right, recipe)
        with torch.no_grad():
            # One side ends in zeros: the score is the base, and gradients reach the zeros through the other side.
            for parameter in self.y[-1].parameters():
                parameter.zero_()
            for parameter in self.x[-1].parameters():
                parameter[-1].zero_()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the scores of all pairs, shape ``(len(x), len(y))``."""
        own, other = self.x(x), self.y(y)
        scores: torch.Tensor = own[:, :-1] @ other[:, :-1].T + own[:, -1:] + other[:, -1:].T
        return scores if self.base is None else scores + self.base(x, y)


def _branch(columns: int, recipe: Recipe) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(columns, recipe.width),
        nn.GELU(),
        nn.Linear(recipe.width, recipe.width),
        nn.GELU(),
        nn.Linear(recipe.width, recipe.features + 1),
    )


def columns_of(side: Side) -> torch.Tensor:
    """Return what a critic sees of a side, float32, shape ``(samples, columns)``.

    Of a continuous one the coordinates with normal marginals, and how far out a sample is, by its normal scores and by
    scores with heavy tails; of a discrete one a column for each symbol.
    """
    if side.kind == "discrete":
        return torch.nn.functional.one_hot(torch.from_numpy(side.symbols)).float()
    normal = gaussianised(side.values)
    return torch.from_numpy(np.hstack([normal, gaussianised(radii(normal))])).float()


def radii(normal: Floats) -> Floats:
    """Return mean squares of normal scores, and of the same as quantiles of Student's t of 2 degrees, shape ``(n, 2)``.

    Quantiles of that distribution have the closed form ``(2u - 1) / sqrt(2 u (1 - u))``.
    """
    share = np.clip(ndtr(normal), 1e-12, 1 - 1e-12)
    heavy = (2 * share - 1) / np.sqrt(2 * share * (1 - share))
    return np.column_stack([np.square(normal).mean(1), np.square(heavy).mean(1)])


def train_critic(
    critic: Critic, x: torch.Tensor, y: torch.Tensor, objective: Objective, recipe: Recipe, seed: int
) -> torch.Tensor:
    """Train a critic, leave it as it was best on a sixth put aside, and return the places of the other samples."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    aside = min(max(len(x) // 6, 2), 1000)
    watch, fit = order[:aside], order[aside:]
    optimiser = torch.optim.AdamW(critic.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.rate, total_steps=recipe.steps + 1, pct_start=0.1
    )

    def look() -> float:
        with torch.no_grad():
            return float(objective(critic(x[watch], y[watch])))

    best, state, since = look(), copy.deepcopy(critic.state_dict()), 0
    for step in range(1, recipe.steps + 1):
        chosen = fit[torch.randint(len(fit), (min(recipe.batch, len(fit)),), generator=generator)]
        optimiser.zero_grad()
        objective(critic(x[chosen], y[chosen])).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % recipe.every == 0 or step == recipe.steps:
            since += 1
            if (now := look()) < best:
                best, state, since = now, copy.deepcopy(critic.state_dict()), 0
            elif since >= recipe.patience:
                break
    critic.load_state_dict(state)
    critic.eval()
    return fit
