"""ZipVL: as many entries are important as it takes to cover the attention of a layer; the others get fewer bits.

He et al. 2024, arXiv 2410.08584. How many is decided layer by layer, from the attention that entries drew in total;
which ones, from the attention that each drew of the queries that could see it (normalised scores).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, best
from isthmus.bottlenecks.cache.selection.base import BaseSelector
from isthmus.errors import BadInput


@dataclass(frozen=True)
class ZipVl(BaseSelector):
    """Entries that cover a share of the attention in the first code, all others in the second.

    Parameters
    ----------
    mass : float
        The share of the attention that the important entries cover.

    Raises
    ------
    BadInput
        If it is not above 0 and at most 1.
    """

    name: ClassVar[str] = "zipvl"
    slug: ClassVar[str | None] = "zipvl"
    rows: ClassVar[Literal["none", "window", "all"]] = "all"
    channels: ClassVar[int] = 2
    tiers: ClassVar[int] = 2

    mass: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise BadInput(f"zipvl: a mass of {self.mass}; choose a share above 0, at most 1")

    def observe(self, look: Look) -> Tensor:
        """Return the attention that each entry drew and the queries that could see it, ``(B, H, N, 2)``."""
        return torch.stack([look.total(look.probs), look.total(torch.isfinite(look.logits).float())], -1)

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep all (or the best, where there is a bound); of the new ones the important in the first code."""
        real = candidates.real
        normal = candidates.stats[..., 0] / candidates.stats[..., 1].clamp_min(1)
        # Heads of a layer share what is important.
        score = normal.mean(1, keepdim=True).expand_as(real)
        keep = real
        if allowed is not None:
            keep = best(score, real, torch.full(real.shape[:2], allowed, device=real.device))
        new = slice(candidates.past, None)
        drawn = (candidates.stats[..., new, 0] * real[..., new]).mean(1)
        important = covering(drawn, self.mass)
        count = important[:, None].expand(-1, real.shape[1])
        first = best(score[..., new], real[..., new], count)
        tiers = torch.where(keep[..., new], torch.where(first, 0, 1), -1)
        return Choice(keep[..., : candidates.past], tiers, candidates.keys, candidates.values)


def covering(drawn: Tensor, mass: float) -> Tensor:
    """Return the fewest entries that cover a share of what was drawn, int64 of shape ``(B,)``.

    Parameters
    ----------
    drawn : Tensor, shape ``(B, N)``
        None below zero.
    mass : float
    """
    ordered = drawn.double().sort(-1, descending=True).values
    covered = ordered.cumsum(-1)
    wanted = mass * covered[:, -1:]
    return ((covered < wanted * (1 - 1e-12)).sum(-1) + 1) * (wanted[:, 0] > 0)
