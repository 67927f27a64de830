"""Window with sinks: the newest entries stay, beside the first tokens (Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, keep_preferred


@dataclass(frozen=True)
class Window:
    """The newest entries stay."""

    name: ClassVar[str] = "window"
    slug: ClassVar[str | None] = None
    rows: ClassVar[Literal["none", "window", "all"]] = "none"
    channels: ClassVar[int] = 0
    fresh: ClassVar[bool] = False
    tiers: ClassVar[int] = 1

    @property
    def window(self) -> int:
        """Return 0."""
        return 0

    def born(self, keys: Tensor) -> Tensor | None:
        """Return None."""
        return None

    def observe(self, look: Look) -> Tensor:
        """Return nothing to add."""
        return look.probs.new_zeros((*look.ranks.shape, 0))

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep the newest."""
        age = torch.arange(candidates.real.shape[2], device=candidates.real.device, dtype=torch.float32)
        return keep_preferred(candidates, age.expand(candidates.real.shape), allowed)
