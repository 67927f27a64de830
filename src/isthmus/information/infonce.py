"""InfoNCE: which of many was drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from isthmus.information import objectives
from isthmus.information.bounds import CriticBound
from isthmus.information.critic import Objective
from isthmus.information.result import Floats
from isthmus.information.scores import Scores


@dataclass(frozen=True)
class InfoNce(CriticBound):
    """``E[T(x, y) - log mean_j exp T(x, y_j)]`` (van den Oord et al. 2018, section 2.3): at most ``log n``."""

    name: ClassVar[str] = "infonce"
    about: ClassVar[str] = "lower bound by a critic; little variance, at most log(n/2)"
    paper: ClassVar[str] = "van den Oord et al. 2018, arXiv 1807.03748"
    slug: ClassVar[str | None] = None
    objective: ClassVar[Objective] = staticmethod(objectives.contrastive)

    def read(self, scores: Scores) -> Floats:
        """Return what each sample adds."""
        return scores.contrast

    def ceiling(self, samples: int) -> float | None:
        """Return ``log n``."""
        return float(np.log(samples))
