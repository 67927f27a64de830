"""EMS: a global-local score, a share of the layer's entries for each head, and evicted entries merged into kept ones.

Li et al. 2024, arXiv 2412.08521. The abstract gives the parts, not their formulas; here: the score is the larger of
the attention per query that could see an entry and that of the last queries, each over its sum; a head gets entries as
it needs to cover ``mass`` of its score; an evicted new entry is merged into the kept new one with the likest key, by
their scores, if the cosine is at least ``similarity``, and otherwise goes (the zero class). What is coded is never
coded again, so entries of history are evicted and not merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice, Look, best, in_first_tier
from isthmus.bottlenecks.cache.selection.base import BaseSelector
from isthmus.errors import BadInput


@dataclass(frozen=True)
class EvictThenMerge(BaseSelector):
    """Evict by head, then merge.

    Parameters
    ----------
    queries : int
        The last queries of a prompt, whose attention is the local part of the score.
    mass : float
        The share of its score by which a head's need of entries is measured.
    floor : float
        The share of an even share that every head gets.
    similarity : float
        The least cosine of keys that are merged; above 1: none is.

    Raises
    ------
    BadInput
        If one of these is out of range.
    """

    name: ClassVar[str] = "ems-kv"
    slug: ClassVar[str | None] = "ems-kv"
    rows: ClassVar[Literal["none", "window", "all"]] = "all"
    channels: ClassVar[int] = 3

    queries: int = 16
    mass: float = 0.9
    floor: float = 0.5
    similarity: float = 0.8

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.mass <= 1 or not 0 <= self.floor <= 1 or not self.similarity >= -1:
            raise BadInput(
                f"ems-kv: {self.queries} queries, mass {self.mass}, floor {self.floor}, similarity {self.similarity};"
                " choose 1 or more, two shares, and -1 or more"
            )

    @property
    def window(self) -> int:
        """Return the last queries."""
        return self.queries

    def observe(self, look: Look) -> Tensor:
        """Return attention drawn, queries that could see, and attention drawn of late, ``(B, H, N, 3)``."""
        visible = torch.isfinite(look.logits).float()
        return torch.stack([look.total(look.probs), look.total(visible), look.total(look.probs, look.late)], -1)

    def score(self, candidates: Candidates) -> Tensor:
        """Return the global-local score, shape ``(B, H, N)``."""
        stats = candidates.stats * candidates.real[..., None]
        everywhere = stats[..., 0] / stats[..., 1].clamp_min(1)
        both = [
            part / part.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            for part in (everywhere, stats[..., 2])
        ]
        return torch.maximum(*both)

    def choose(self, candidates: Candidates, allowed: int | None) -> Choice:
        """Keep the best of each head, and merge the other new ones into them."""
        score, real = self.score(candidates), candidates.real
        if allowed is None:
            return in_first_tier(candidates, real)
        keep = best(score, real, shares(score, real, allowed, self.mass, self.floor))
        choice = in_first_tier(candidates, keep)
        new = slice(candidates.past, None)
        keys, values = merged(
            candidates.keys,
            candidates.values,
            score[..., new],
            keep[..., new],
            real[..., new] & candidates.flushing[:, None, None],
            self.similarity,
        )
        return Choice(choice.past, choice.tiers, keys, values)


def shares(score: Tensor, real: Tensor, allowed: int, mass: float, floor: float) -> Tensor:
    """Return how many entries each head gets, int64 of shape ``(B, H)``; a layer's sum is ``H * allowed`` or all.

    Parameters
    ----------
    score : Tensor, shape ``(B, H, N)``
    real : Tensor of bool, shape ``(B, H, N)``
    """
    ordered = (score.double() * real).sort(-1, descending=True).values
    covered = ordered.cumsum(-1)
    need = ((covered < mass * covered[..., -1:]).sum(-1) + 1).double()
    heads, there = score.shape[1], real.sum(-1)
    least = torch.minimum(torch.tensor(int(floor * allowed), device=score.device), there)
    given = least.clone()
    left = torch.minimum(torch.tensor(heads * allowed, device=score.device), there.sum(1)) - given.sum(1)
    # What a head cannot use goes to the others, in proportion to their need.
    while bool((left > 0).any()):
        open_heads = given < there
        weight = need * open_heads
        exact = left[:, None] * weight / weight.sum(1, keepdim=True).clamp_min(1e-300)
        more = torch.minimum(exact.floor().long(), there - given)
        if not bool(more.any()):
            order = torch.sort(exact.masked_fill(~open_heads, -1.0), dim=1, descending=True, stable=True).indices
            place = torch.empty_like(order).scatter_(
                1, order, torch.arange(heads, device=order.device).expand_as(order)
            )
            more = ((place < left[:, None]) & open_heads).long()
        given, left = given + more, left - more.sum(1)
    return given


def merged(
    keys: Tensor, values: Tensor, score: Tensor, keep: Tensor, real: Tensor, similarity: float
) -> tuple[Tensor, Tensor]:
    """Return keys and values in which evicted entries were added to the kept ones with the likest keys.

    A kept entry becomes the mean of itself and what was merged into it, weighed by score.

    Parameters
    ----------
    keys, values : Tensor, shape ``(B, H, m, D)``
    score : Tensor, shape ``(B, H, m)``
    keep, real : Tensor of bool, shape ``(B, H, m)``
    """
    unit = torch.nn.functional.normalize(keys.float(), dim=-1)
    near = (unit @ unit.transpose(-1, -2)).masked_fill(~keep[:, :, None], -torch.inf)
    cosine, target = near.max(-1)
    moved = real & ~keep & (cosine >= similarity)
    weight = score.float().clamp_min(torch.finfo(torch.float32).tiny)
    given = torch.where(moved, weight, 0.0)
    mass = torch.where(keep, weight, 0.0).scatter_add(-1, target, given)
    out = []
    for part in (keys, values):
        own = torch.where(keep, weight, 0.0)[..., None] * part.float()
        index = target[..., None].expand_as(own)
        total = own.scatter_add(2, index, given[..., None] * part.float())
        changed = (mass > torch.where(keep, weight, 0.0)) & keep
        mean = total / mass.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
        out.append(torch.where(changed[..., None], mean.to(part.dtype), part))
    return out[0], out[1]
