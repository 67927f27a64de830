"""No selection: every entry stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.bottlenecks.cache.roles import Candidates, Choice, in_first_tier
from isthmus.bottlenecks.cache.selection.base import BaseSelector


@dataclass(frozen=True)
class Everything(BaseSelector):
    """Every entry stays."""

    name: ClassVar[str] = "everything"

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep all."""
        return in_first_tier(candidates, candidates.real)
