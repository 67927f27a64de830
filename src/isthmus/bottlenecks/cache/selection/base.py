"""What most selectors have in common: entries start with nothing, and are chosen by one number each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, keep_preferred


@dataclass(frozen=True)
class BaseSelector:
    """A selector that sees no attention and keeps no numbers; see `isthmus.bottlenecks.cache.roles.Selector`."""

    slug: ClassVar[str | None] = None
    rows: ClassVar[Literal["none", "window", "all"]] = "none"
    channels: ClassVar[int] = 0
    fresh: ClassVar[bool] = False
    tiers: ClassVar[int] = 1

    @property
    def window(self) -> int:
        """Return 0: no queries of a prompt are late."""
        return 0

    def born(self, keys: Tensor) -> Tensor | None:
        """Return None: entries start at zero."""
        return None

    def observe(self, look: Look) -> Tensor:
        """Return zeros, ``(B, H, N, C)``: a look adds nothing."""
        return look.probs.new_zeros((*look.ranks.shape, self.channels))

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep the entries whose first number is the largest."""
        return keep_preferred(candidates, candidates.stats[..., 0], allowed)
