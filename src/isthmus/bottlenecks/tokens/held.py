"""What goes from layer to layer with the tokens: where they were, which are real, how many each stands for.

It is handed on as a mark on the hidden states themselves, so that no module keeps anything between two runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.errors import BadInput

MARK = "isthmus_held"


@dataclass(frozen=True)
class Aside:
    """Tokens that pass some layers by.

    Parameters
    ----------
    hidden : Tensor, shape ``(B, m, width)``
    places : Tensor of int64, shape ``(B, m)``
    real : Tensor of bool, shape ``(B, m)``, or None
    back : int
        They come back after this layer.
    """

    hidden: Tensor
    places: Tensor
    real: Tensor | None
    back: int


@dataclass(frozen=True)
class Held:
    """What is known of the tokens that are here, ``B`` rows of ``n``.

    Parameters
    ----------
    total : int
        How many there were at first.
    places : Tensor of int64, shape ``(B, n)``
        Where each of them was.
    real : Tensor of bool, shape ``(B, n)``, or None
        Which of them count; None: all. The others are padding, or fill a row that keeps fewer than another.
    sizes : Tensor, shape ``(B, n)``, or None
        How many tokens each stands for; None: itself.
    slots : Tensor of int64, shape ``(B, total)``, or None
        Which token each of the first ones is now a part of; None where nothing was merged.
    aside : tuple of Aside
    proportional : bool
        Whether keys count by their size in attention.
    changed : bool
        Whether anything has been done to them.
    """

    total: int
    places: Tensor
    real: Tensor | None = None
    sizes: Tensor | None = None
    slots: Tensor | None = None
    aside: tuple[Aside, ...] = ()
    proportional: bool = True
    changed: bool = False

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the logits of each key, shape ``(B, 1, 1, n)``; None: nothing.

        The logarithm of its size (ToMe; Bolya et al. 2023, arXiv 2210.09461, eq. 1), the least number where it does
        not count.
        """
        if self.sizes is not None and self.proportional:
            sized = self.sizes.clamp(min=torch.finfo(self.sizes.dtype).tiny).log().to(dtype)
        elif self.real is not None:
            sized = torch.zeros(self.real.shape, dtype=dtype, device=self.real.device)
        else:
            return None
        if self.real is not None:
            sized = torch.where(self.real, sized, torch.finfo(dtype).min)
        return sized[:, None, None, :]

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return what attention takes for a mask, shape ``(B, 1, 1, n)``: bool where it is only of keys that count."""
        if self.sizes is None or not self.proportional:
            return None if self.real is None else self.real[:, None, None, :]
        return self.bias(dtype)

    def at(self, kept: Tensor, real: Tensor | None) -> Held:
        """Return what is known of some of the tokens.

        Parameters
        ----------
        kept : Tensor of int64, shape ``(B, k)``
            Which.
        real : Tensor of bool, shape ``(B, k)``, or None
            Which of those count from now on.
        """
        sizes = None if self.sizes is None else self.sizes.gather(1, kept)
        return replace(self, places=self.places.gather(1, kept), real=real, sizes=sizes, changed=True)


def started(hidden: Tensor, mask: Tensor | None) -> Held:
    """Return what is known of tokens that enter the first layer.

    Parameters
    ----------
    hidden : Tensor, shape ``(B, n, width)``
    mask : Tensor or None
        As transformers hands it to a layer: bool, or what is added to logits, ``(B, 1, queries, n)``.

    Raises
    ------
    BadInput
        If the mask is none of these.
    """
    rows, total = hidden.shape[:2]
    places = torch.arange(total, device=hidden.device).expand(rows, total)
    if mask is None:
        return Held(total, places)
    if mask.dim() != 4:
        raise BadInput(
            f"tokens: an attention mask of {mask.dim()} dimensions, which narrowed tokens cannot follow; "
            "leave the network's attention as narrowing set it"
        )
    # A mask of padding is the same for every query and head.
    keys = mask[:, 0, 0]
    return Held(total, places, (keys if keys.dtype == torch.bool else keys > -1.0).expand(rows, total))


def taken(tensor: Tensor, where: Tensor) -> Tensor:
    """Return the tokens ``(B, k, width)`` that stand at ``where``, int64 of shape ``(B, k)``."""
    return tensor.gather(1, where[..., None].expand(-1, -1, tensor.shape[-1]))


def rejoined(hidden: Tensor, held: Held, after: int) -> tuple[Tensor, Held]:
    """Put tokens that come back after a layer among the others, all in their old order.

    Parameters
    ----------
    hidden : Tensor, shape ``(B, n, width)``
    after : int

    Returns
    -------
    tuple of Tensor, shape ``(B, n + m, width)``, and Held
    """
    back = [one for one in held.aside if one.back <= after]
    if not back:
        return hidden, held
    places = torch.cat([held.places, *(one.places for one in back)], 1)
    order = places.argsort(1)
    real = _joined([held.real, *(one.real for one in back)], order)
    together = taken(torch.cat([hidden, *(one.hidden for one in back)], 1), order)
    rest = tuple(one for one in held.aside if one.back > after)
    return together, replace(held, places=places.gather(1, order), real=real, aside=rest)


def _joined(parts: Sequence[Tensor | None], order: Tensor) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known, 1).gather(1, order) if len(known) == len(parts) else None
