"""Attention over a narrowed cache: a registered attention function, so that no model's ``forward`` is touched.

Without a narrowed cache it is the stock function. With one, `isthmus.bottlenecks.cache.layer.NarrowLayer.update` hands
over the new keys, marked; the prompt then goes through the stock function, later queries through products with the
parts that the layer holds, and only the rows that a selector asks for are computed beside that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isthmus.bottlenecks.attention import register_attention, stock
from isthmus.errors import BadInput

if TYPE_CHECKING:
    from isthmus.bottlenecks.cache.layer import NarrowLayer

NAME = "isthmus_cache"
MARK = "isthmus_layer"
_MOST = 1 << 24  # logits held at once: 64 MB


@dataclass(frozen=True)
class Part:
    """Entries that queries look at together.

    Parameters
    ----------
    keys, values : Tensor, shape ``(B, H, n, D)``
    bias : Tensor or None
        Bool, which may be seen, or what is added to the logits; broadcast to ``(B, H, G, Q, n)``.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None


def register() -> None:
    """Make the attention function known to transformers; a second time changes nothing."""
    register_attention(NAME, cached_attention)


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to what a narrowed cache holds, or as ever where there is none.

    Parameters
    ----------
    module : nn.Module
        The layer's attention.
    query, key, value : Tensor, shape ``(B, heads, Q, D)``
    attention_mask : Tensor of bool or None, shape ``(B, 1, Q, slots)``

    Returns
    -------
    tuple of Tensor, shape ``(B, Q, heads, D)``, and None

    Raises
    ------
    BadInput
        If the mask is not one that a narrowed cache can follow, or the attention has parts that it does not know.
    """
    layer: NarrowLayer | None = getattr(key, MARK, None)
    if layer is None:
        return stock(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise BadInput(
                f"cache: {type(module).__name__} has {name} in its attention, which a narrowed cache does not know;"
                " use the full cache"
            )
    return layer.attend(module, query, key, value, attention_mask, scaling, kwargs), None


def grouped(query: Tensor, heads: int) -> Tensor:
    """Return queries ``(B, heads of queries, Q, D)`` by the key-value head they look at, ``(B, H, G, Q, D)``."""
    return query.reshape(query.shape[0], heads, -1, *query.shape[2:])


def logits_of(query: Tensor, part: Part, scaling: float) -> Tensor:
    """Return scaled products, float32 of shape ``(B, H, G, Q, n)``, -inf where an entry is hidden."""
    group, count = query.shape[2:4]
    products = (query.flatten(2, 3) @ part.keys.transpose(-1, -2)).float() * scaling
    logits = products.view(*products.shape[:2], group, count, -1)
    if part.bias is None:
        return logits
    if part.bias.dtype == torch.bool:
        return logits.masked_fill(~part.bias, -torch.inf)
    return logits + part.bias


def softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last axis; zeros where everything is hidden."""
    return torch.nan_to_num(torch.softmax(logits, dim=-1))


def mixed(probs: Tensor, parts: Sequence[Part]) -> Tensor:
    """Return the sum of values by their probabilities, ``(B, H, G, Q, D)``."""
    group, count = probs.shape[2:4]
    pieces = torch.split(probs, [part.keys.shape[2] for part in parts], dim=-1)
    total = None
    for piece, part in zip(pieces, parts, strict=True):
        own = piece.flatten(2, 3).to(part.values.dtype) @ part.values
        total = own if total is None else total + own
    assert total is not None
    return total.view(*total.shape[:2], group, count, -1)


def chunks(queries: int, rows: int, entries: int) -> Iterator[slice]:
    """Return slices of the queries, each of no more logits than fit; ``rows`` are batch times heads."""
    step = max(1, _MOST // max(1, rows * entries))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))
