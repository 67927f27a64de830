"""Pairs of tokens that are alike, as token merging finds them (ToMe; Bolya et al. 2023, arXiv 2210.09461, sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.bottlenecks.tokens.look import Look


@dataclass(frozen=True)
class Pairs:
    """What is found for every token.

    Parameters
    ----------
    likeness : Tensor, shape ``(B, n)``
        To its partner, -1 to 1; -inf of tokens that do not leave.
    partners : Tensor of int64, shape ``(B, n)``
        Its own place for those.
    """

    likeness: Tensor
    partners: Tensor


def paired(look: Look) -> Pairs:
    """Pair every other token with the one most like it among those between them.

    Tokens at even places may leave, those at odd places are their partners; likeness is the cosine of their keys,
    averaged over heads. The tokens before the example's neither leave nor are partners.
    """
    metric = look.key.mean(1)
    metric = metric / metric.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    likeness = metric[:, 0::2] @ metric[:, 1::2].transpose(-1, -2)
    count = metric.shape[1]
    even, odd = (count + 1) // 2, count // 2
    device = metric.device
    barred = (2 * torch.arange(odd, device=device) + 1 < look.prefix)[None, None]
    if look.held.real is not None:
        barred = barred | ~look.held.real[:, None, 1::2]
    best = torch.where(barred, -torch.inf, likeness).max(-1)
    fixed = 2 * torch.arange(even, device=device) < look.prefix
    alike = torch.where(fixed, -torch.inf, best.values)
    rows = metric.shape[0]
    others = torch.full((rows, 1), -torch.inf, device=device).expand(rows, odd)
    own = (2 * torch.arange(odd, device=device) + 1).expand(rows, odd)
    # Even tokens, then odd ones: put back in the order in which they stand.
    here = torch.arange(count, device=device)
    place = (here // 2 + here % 2 * even).expand(rows, count)
    return Pairs(
        torch.cat([alike, others], 1).gather(1, place), torch.cat([2 * best.indices + 1, own], 1).gather(1, place)
    )


def pair_macs(tokens: int, head: int) -> int:
    """Return the multiply-accumulates of pairing so many tokens, keys being of width ``head``."""
    return ((tokens + 1) // 2) * (tokens // 2) * head
