"""Accumulated attention: entries that drew most of it so far stay (H2O; Zhang et al. 2023, arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, keep_preferred


@dataclass(frozen=True)
class AccumulatedAttention:
    """The heavy hitters: the largest sums of attention over all queries, averaged over the group of query heads."""

    name: ClassVar[str] = "h2o"
    slug: ClassVar[str | None] = None
    rows: ClassVar[Literal["none", "window", "all"]] = "all"
    channels: ClassVar[int] = 1
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
        """Return the attention that each entry drew, ``(B, H, N, 1)``."""
        return look.total(look.probs)[..., None]

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep those that drew most."""
        return keep_preferred(candidates, candidates.stats[..., 0], allowed)
