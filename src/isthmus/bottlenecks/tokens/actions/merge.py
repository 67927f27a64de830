"""Merging: what does not stay becomes part of what does (ToMe; Bolya et al. 2023, arXiv 2210.09461)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.bottlenecks.tokens.held import Held, taken
from isthmus.bottlenecks.tokens.look import Choice, Look, Scored


@dataclass(frozen=True)
class Merge:
    """Average each token that leaves into its partner, weighted by how many tokens each stands for.

    Where the score names no partner it is the token most like it, by the cosine of keys averaged over heads, among
    those of the example that stay.

    Parameters
    ----------
    proportional : bool
        Whether later attention counts a key by its size: ``softmax(q K^T / sqrt(d) + log s)``, the paper's eq. 1.
    """

    name: ClassVar[str] = "merge"
    slug: ClassVar[str | None] = None
    uneven: ClassVar[bool] = False
    pauses: ClassVar[bool] = False

    proportional: bool = True

    def done(self, look: Look, scored: Scored, choice: Choice, last: int) -> tuple[Tensor, Held]:
        """Return the merged tokens, ``(B, k, width)``, and what is known of them.

        ``x_j = sum_i s_i x_i / sum_i s_i`` over token ``j`` and those merged into it.
        """
        hidden, held = look.hidden, look.held
        into = self._targets(look, scored, choice)
        sizes = torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device)
        if held.sizes is not None:
            sizes = held.sizes
        if held.real is not None:
            sizes = sizes * held.real.to(sizes.dtype)
        weighted = hidden * sizes[..., None]
        wide = into[..., None].expand(-1, -1, hidden.shape[-1])
        total = taken(weighted, choice.kept).scatter_add(1, wide, taken(weighted, choice.gone))
        weight = sizes.gather(1, choice.kept).scatter_add(1, into, sizes.gather(1, choice.gone))
        merged = total / torch.where(weight > 0, weight, 1.0)[..., None]
        after = replace(
            held.at(choice.kept, choice.kept_real),
            sizes=weight,
            slots=self._slots(held, choice, into),
            proportional=self.proportional,
        )
        return merged, after

    def _targets(self, look: Look, scored: Scored, choice: Choice) -> Tensor:
        """Return which of the kept each of the gone becomes part of, int64 of shape ``(B, n - k)``."""
        if scored.partners is not None:
            found = _inverse(choice).gather(1, scored.partners.gather(1, choice.gone))
            # Only padding may be paired with what goes too; it has no weight.
            return found.clamp(max=choice.kept.shape[1] - 1)
        metric = look.key.mean(1)
        metric = metric / metric.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        likeness = taken(metric, choice.gone) @ taken(metric, choice.kept).transpose(-1, -2)
        barred = choice.kept < look.prefix
        if choice.kept_real is not None:
            barred = barred | ~choice.kept_real
        return torch.where(barred[:, None], -torch.inf, likeness).argmax(-1)

    def _slots(self, held: Held, choice: Choice, into: Tensor) -> Tensor:
        rows, count = choice.kept.shape
        here = torch.arange(count, device=into.device).expand(rows, count)
        moved = torch.cat([here, into], 1).gather(1, _inverse(choice))
        return moved if held.slots is None else moved.gather(1, held.slots)

    def restored(self, hidden: Tensor, held: Held) -> Tensor:
        """Return all places, ``(B, total, width)``: each holds the token that it is a part of."""
        return hidden if held.slots is None else taken(hidden, held.slots)

    def macs(self, tokens: int, left: int, *, halves: bool, head: int) -> int:
        """Return the multiply-accumulates of looking for partners, where the score has named none."""
        return 0 if halves else (tokens - left) * left * head

    def layers_aside(self) -> int | None:
        """Return 0: no token comes back."""
        return 0


def _inverse(choice: Choice) -> Tensor:
    """Return where each token is among the kept and, behind them, the gone; int64 of shape ``(B, n)``."""
    return torch.cat([choice.kept, choice.gone], 1).argsort(1)
