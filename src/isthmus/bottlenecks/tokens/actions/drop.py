"""Dropping: what does not stay is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.bottlenecks.tokens.held import Held, taken
from isthmus.bottlenecks.tokens.look import Choice, Look, Scored


@dataclass(frozen=True)
class Drop:
    """Leave tokens out for good."""

    name: ClassVar[str] = "drop"
    slug: ClassVar[str | None] = None
    uneven: ClassVar[bool] = True
    pauses: ClassVar[bool] = False

    def done(self, look: Look, scored: Scored, choice: Choice, last: int) -> tuple[Tensor, Held]:
        """Return the tokens that stay, ``(B, k, width)``, and what is known of them."""
        return taken(look.hidden, choice.kept), look.held.at(choice.kept, choice.kept_real)

    def restored(self, hidden: Tensor, held: Held) -> Tensor:
        """Return all places, ``(B, total, width)``: those that were left hold the mean of the tokens that stayed.

        Whoever then takes the mean over all places has the mean over those that stayed.
        """
        rows, _, width = hidden.shape
        if held.real is None:
            mean = hidden.mean(1, keepdim=True)
        else:
            counted = held.real[..., None].to(hidden.dtype)
            mean = (hidden * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1.0)
            hidden = torch.where(held.real[..., None], hidden, mean)
        return mean.expand(rows, held.total, width).scatter(1, held.places[..., None].expand(-1, -1, width), hidden)

    def macs(self, tokens: int, left: int, *, halves: bool, head: int) -> int:
        """Return 0: nothing is multiplied."""
        return 0

    def layers_aside(self) -> int | None:
        """Return 0: no token comes back."""
        return 0
