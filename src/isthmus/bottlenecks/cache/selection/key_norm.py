"""Key norm: entries with short keys stay (Devoto et al. 2024, arXiv 2406.11430)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, keep_preferred


@dataclass(frozen=True)
class KeyNorm:
    """The entries whose keys have the smallest Euclidean norm stay: these tend to draw attention."""

    name: ClassVar[str] = "key-norm"
    slug: ClassVar[str | None] = None
    rows: ClassVar[Literal["none", "window", "all"]] = "none"
    channels: ClassVar[int] = 1
    fresh: ClassVar[bool] = False
    tiers: ClassVar[int] = 1

    @property
    def window(self) -> int:
        """Return 0."""
        return 0

    def born(self, keys: Tensor) -> Tensor | None:
        """Return the norms of keys, negative, shape ``(B, H, new, 1)``."""
        norms: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1, keepdim=True)
        return -norms

    def observe(self, look: Look) -> Tensor:
        """Return zeros: attention is not looked at."""
        return look.probs.new_zeros((*look.ranks.shape, 1))

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep those with the shortest keys."""
        return keep_preferred(candidates, candidates.stats[..., 0], allowed)
