"""NWJ: the bound of Nguyen, Wainwright and Jordan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from isthmus.information import objectives
from isthmus.information.bounds import CriticBound, influence
from isthmus.information.critic import Objective
from isthmus.information.result import Floats
from isthmus.information.scores import Scores


@dataclass(frozen=True)
class Nwj(CriticBound):
    """``E[T] - E exp(T - 1)``, the second mean over pairs apart (Nguyen et al. 2010): needs no logarithm of a mean."""

    name: ClassVar[str] = "nwj"
    about: ClassVar[str] = "lower bound by a critic that must also be calibrated; unbiased, much variance"
    paper: ClassVar[str] = "Nguyen et al. 2010, arXiv 0809.0853"
    slug: ClassVar[str | None] = None
    objective: ClassVar[Objective] = staticmethod(objectives.nguyen)

    def read(self, scores: Scores) -> Floats:
        """Return what each sample adds."""
        weights, whole = influence(scores)
        return np.asarray(scores.together - weights * np.exp(whole - 1), dtype=np.float64)
