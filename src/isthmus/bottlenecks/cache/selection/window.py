"""Window with sinks: the newest entries stay, beside the first tokens (Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from isthmus.bottlenecks.cache.roles import Candidates, Choice, keep_preferred
from isthmus.bottlenecks.cache.selection.base import BaseSelector


@dataclass(frozen=True)
class Window(BaseSelector):
    """The newest entries stay."""

    name: ClassVar[str] = "window"

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep the newest."""
        age = torch.arange(candidates.real.shape[2], device=candidates.real.device, dtype=torch.float32)
        return keep_preferred(candidates, age.expand(candidates.real.shape), allowed)
