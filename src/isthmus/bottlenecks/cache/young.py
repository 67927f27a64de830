"""Young entries: the newest tokens of all rows, as they are, until a block of them joins history."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from isthmus.errors import BadInput

PADDING, HERE, GONE = 0, 1, 2
"""The state of a slot in a row: padding, held, or already in history."""


class Young:
    """Keys, values, numbers and states of the newest slots, shapes ``(B, H, r, D)``, ``(B, H, r, C)`` and ``(B, r)``.

    Parameters
    ----------
    channels : int
        Numbers that a selector keeps for each entry.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.stats: Tensor | None = None
        self.state: Tensor | None = None

    @property
    def slots(self) -> int:
        """Return how many slots are held."""
        return 0 if self.keys is None else self.keys.shape[2]

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return keys, values, numbers and states."""
        assert self.keys is not None
        assert self.values is not None
        assert self.stats is not None
        assert self.state is not None
        return self.keys, self.values, self.stats, self.state

    def tensors(self) -> Iterable[Tensor]:
        """Return all tensors that are held."""
        return () if self.keys is None else self.parts

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Append slots, held in every row until `mark` says otherwise."""
        keys, values = keys.detach(), values.detach()
        stats = torch.zeros((*keys.shape[:3], self.channels), device=keys.device)
        state = torch.full((keys.shape[0], keys.shape[2]), HERE, dtype=torch.uint8, device=keys.device)
        if self.keys is None:
            self.keys, self.values, self.stats, self.state = keys.clone(), values.clone(), stats, state
            return
        held = self.parts
        self.keys, self.values, self.stats = (
            torch.cat([old, new], 2) for old, new in zip(held[:3], (keys, values, stats), strict=True)
        )
        self.state = torch.cat([held[3], state], 1)

    def mark(self, real: Tensor) -> None:
        """Say which of the last slots are real, bool of shape ``(B, Q)``."""
        self.parts[3][:, -real.shape[1] :] = torch.where(real, HERE, PADDING).to(torch.uint8)

    def here(self) -> Tensor:
        """Return which slots are held, bool of shape ``(B, r)``."""
        return self.parts[3] == HERE

    def take(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take slots out, in their order.

        Parameters
        ----------
        which : Tensor of bool, shape ``(B, r)``

        Returns
        -------
        tuple of Tensor
            Keys, values and numbers, ``(B, H, m, ...)``, and which of the m are real in a row, ``(B, m)``.
        """
        keys, values, stats, state = self.parts
        most = int(which.sum(1).max())
        order = torch.sort(which, dim=1, descending=True, stable=True).indices[:, :most]
        taken = tuple(
            torch.gather(part, 2, order[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))
            for part in (keys, values, stats)
        )
        state[which] = GONE
        first = int((state == HERE).any(0).int().argmax()) if bool((state == HERE).any()) else state.shape[1]
        if first:
            self.keys, self.values, self.stats = (part[:, :, first:].clone() for part in (keys, values, stats))
            self.state = state[:, first:].clone()
        return taken[0], taken[1], taken[2], torch.gather(which, 1, order)

    def crop(self, count: int) -> Tensor:
        """Take away the last slots; return how many of them were real, int64 of shape ``(B,)``.

        Raises
        ------
        BadInput
            If some of them are in history already.
        """
        state = self.parts[3]
        if count > self.slots or bool((state[:, -count:] == GONE).any()):
            raise BadInput(
                f"cache: the last {count} tokens cannot be taken back, some are in history;"
                f" set recent to {count} or more"
            )
        real: Tensor = (state[:, -count:] == HERE).sum(1)
        self.keys, self.values, self.stats = (part[:, :, :-count].clone() for part in self.parts[:3])
        self.state = state[:, :-count].clone()
        return real

    def take_rows(self, index: Tensor) -> None:
        """Keep the rows of ``index``, in its order and as often as they are in it."""
        if self.keys is not None:
            self.keys, self.values, self.stats, self.state = (part[index] for part in self.parts)
