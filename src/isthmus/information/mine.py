"""MINE: the bound of Donsker and Varadhan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.information import objectives
from isthmus.information.bounds import CriticBound, influence
from isthmus.information.critic import Objective
from isthmus.information.result import Floats
from isthmus.information.scores import Scores


@dataclass(frozen=True)
class Mine(CriticBound):
    """``E[T] - log E exp T``, the second mean over pairs apart (Belghazi et al. 2018, equation 5).

    All other pairs of a batch are its negatives, 255 for each sample, which leaves the gradient of the logarithm with
    little of the bias that the paper corrects by a moving average.
    """

    name: ClassVar[str] = "mine"
    about: ClassVar[str] = "lower bound by a critic, Donsker-Varadhan; no ceiling, much variance at many nats"
    paper: ClassVar[str] = "Belghazi et al. 2018, arXiv 1801.04062"
    slug: ClassVar[str | None] = None
    objective: ClassVar[Objective] = staticmethod(objectives.donsker_varadhan)

    def read(self, scores: Scores) -> Floats:
        """Return what each sample adds: its score, and its influence on the logarithm."""
        weights, whole = influence(scores)
        return scores.together - whole - (weights - 1)
