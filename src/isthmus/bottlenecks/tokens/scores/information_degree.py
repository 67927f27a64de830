"""Information degree: tokens that are redundant and mean little leave (Turbo; Ju et al. 2023, arXiv 2312.07408)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from isthmus.bottlenecks.tokens.look import Look, Scored
from isthmus.bottlenecks.tokens.scores.pairs import pair_macs, paired


@dataclass(frozen=True)
class InformationDegree:
    """Semantic value less mutual redundancy: ``weight * A - R``.

    ``R`` is how like a token is to its partner, ``A`` the attention that the class token pays it: the paper's
    ``E = R - weight * A``, of which the largest are merged.

    Parameters
    ----------
    weight : float
        Of the semantic value. Attention is shared among all tokens, so that 10 makes a token with a twentieth of it
        outweigh one of half the likeness.
    """

    name: ClassVar[str] = "information-degree"
    slug: ClassVar[str | None] = "turbo-vlm"
    shares: ClassVar[bool] = False
    halves: ClassVar[bool] = True

    weight: float = 10.0

    def scored(self, look: Look) -> Scored:
        """Return ``weight * A - R``, shape ``(B, n)``, inf of partners."""
        pairs = paired(look)
        value = look.attention(look.query[:, :, : look.prefix]).mean((1, 2))
        return Scored(self.weight * value - pairs.likeness, pairs.partners)

    def macs(self, tokens: int, *, prefix: int, width: int, head: int) -> int:
        """Return the multiply-accumulates of the class tokens' rows and of the products of keys."""
        return prefix * tokens * width + pair_macs(tokens, head)
