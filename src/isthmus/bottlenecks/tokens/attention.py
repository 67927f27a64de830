"""Attention that shows its queries and keys: a registered attention function, so that no ``forward`` is touched.

It is the stock function, with the fused kernel. A layer after which tokens leave is given a `Watch` among its keyword
arguments; these reach the attention function, which leaves the queries and keys there for the score to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isthmus.bottlenecks.attention import register_attention, stock
from isthmus.bottlenecks.tokens.held import Held

NAME = "isthmus_tokens"
WATCH = "isthmus_watch"


@dataclass
class Watch:
    """What a layer is given to run with, and what its attention leaves there.

    Parameters
    ----------
    held : Held
        What is known of the tokens that enter it.
    wanted : bool
        Whether queries and keys are asked for.
    query, key : Tensor, shape ``(B, H, n, d)``, or None
    scaling : float
    """

    held: Held
    wanted: bool = False
    query: Tensor | None = None
    key: Tensor | None = None
    scaling: float = 1.0


def register() -> None:
    """Make the attention function known to transformers; a second time changes nothing."""
    register_attention(NAME, watched_attention)


def watched_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as ever, and show queries and keys to whoever asked.

    Parameters
    ----------
    module : nn.Module
        The layer's attention.
    query, key, value : Tensor, shape ``(B, H, n, d)``

    Returns
    -------
    tuple of Tensor, shape ``(B, n, H, d)``, and None
    """
    watch: Watch | None = kwargs.pop(WATCH, None)
    if watch is not None and watch.wanted:
        watch.query, watch.key = query.detach(), key.detach()
        watch.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return stock(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
