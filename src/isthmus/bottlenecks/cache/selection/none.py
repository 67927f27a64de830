"""No selection: every entry stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, in_first_tier


@dataclass(frozen=True)
class Everything:
    """Every entry stays."""

    name: ClassVar[str] = "everything"
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
        """Keep all."""
        return in_first_tier(candidates, candidates.real)
