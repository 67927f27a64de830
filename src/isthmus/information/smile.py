"""SMILE: Donsker and Varadhan with clipped density ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.errors import BadInput
from isthmus.information import objectives
from isthmus.information.bounds import CriticBound, influence
from isthmus.information.critic import Objective
from isthmus.information.result import Floats
from isthmus.information.scores import Scores


@dataclass(frozen=True)
class Smile(CriticBound):
    """``E[T] - log E exp clip(T, -tau, tau)`` (Song and Ermon 2020, equation 13): less variance, no longer a bound.

    Parameters
    ----------
    tau : float
        Of the clip, nats.
    """

    name: ClassVar[str] = "smile"
    about: ClassVar[str] = "Donsker-Varadhan with clipped ratios; less variance, may be too high"
    paper: ClassVar[str] = "Song and Ermon 2020, arXiv 1910.06222"
    slug: ClassVar[str | None] = None
    objective: ClassVar[Objective] = staticmethod(objectives.jensen_shannon)

    tau: float = 5.0

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise BadInput(f"tau {self.tau!r}; give a positive number")

    @property
    def clip(self) -> float | None:
        """``tau``."""
        return self.tau

    def read(self, scores: Scores) -> Floats:
        """Return what each sample adds: its score, and its influence on the logarithm."""
        weights, whole = influence(scores)
        return scores.together - whole - (weights - 1)
