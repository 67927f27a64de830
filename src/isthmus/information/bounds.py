"""What the four bounds by a critic have in common: fitted to one half, read on the other, both ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from isthmus.information.critic import Objective, Recipe
from isthmus.information.result import CC, CD, Estimate, Floats, Kinds, Side
from isthmus.information.scores import Scores, crossfit


@dataclass(frozen=True)
class CriticBound(ABC):
    """A lower bound by a critic; each subclass has its loss and how its scores are read.

    Parameters
    ----------
    recipe : Recipe
    permutations : int
        Of the samples that a critic was not fitted to, for the null.
    """

    objective: ClassVar[Objective]
    kinds: ClassVar[tuple[Kinds, ...]] = (CC, CD)

    recipe: Recipe = field(default_factory=Recipe)
    permutations: int = 99

    @property
    def clip(self) -> float | None:
        """Bound of the scores that are exponentiated."""
        return None

    @abstractmethod
    def read(self, scores: Scores) -> Floats:
        """Return what each sample adds, shape ``(samples,)``."""

    def estimate(self, x: Side, y: Side, rng: np.random.Generator) -> Estimate:
        """Return the estimate; the interval reaches from the bound up to the value on samples that were fitted."""
        folds = crossfit(x, y, type(self).objective, self.recipe, rng, clip=self.clip, permutations=self.permutations)
        parts = np.concatenate([self.read(fold.out) for fold in folds])
        inside = float(np.mean([self.read(fold.inside).mean() for fold in folds]))
        nats, error = float(parts.mean()), 1.96 * float(parts.std()) / np.sqrt(len(parts))
        together = np.mean([fold.out.together.mean() for fold in folds])
        shuffled = nats + np.mean([fold.out.shuffled for fold in folds], 0) - together
        return Estimate(
            nats,
            parts,
            (max(nats - error, 0.0), max(nats, inside, 0.0) + error),
            shuffled if self.permutations else None,
            nats,
            self.ceiling(len(folds[0].out.together)),
        )

    def ceiling(self, samples: int) -> float | None:
        """Return the nats that the bound cannot exceed."""
        return None


def influence(scores: Scores) -> tuple[Floats, float]:
    """Return the mean exponential of pairs apart for each sample, over that of all, and the log of the latter."""
    rows, columns = scores.apart
    logs = np.logaddexp(rows, columns) - np.log(2)
    top = float(logs.max())
    whole = top + float(np.log(np.exp(logs - top).mean()))
    return np.asarray(np.exp(logs - whole), dtype=np.float64), whole
