"""Similarity: tokens that another one resembles leave (ToMe; Bolya et al. 2023, arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.bottlenecks.tokens.look import Look, Scored
from isthmus.bottlenecks.tokens.scores.pairs import pair_macs, paired


@dataclass(frozen=True)
class Similarity:
    """How unlike a token is to its partner; with merging this is bipartite soft matching."""

    name: ClassVar[str] = "similarity"
    slug: ClassVar[str | None] = None
    shares: ClassVar[bool] = False
    halves: ClassVar[bool] = True

    def scored(self, look: Look) -> Scored:
        """Return minus the cosine of keys, shape ``(B, n)``, inf of partners."""
        pairs = paired(look)
        return Scored(-pairs.likeness, pairs.partners)

    def macs(self, tokens: int, *, prefix: int, width: int, head: int) -> int:
        """Return the multiply-accumulates of the products of keys."""
        return pair_macs(tokens, head)
