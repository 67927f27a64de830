"""Attention functions of our own, registered with transformers so that no ``forward`` is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def register_attention(name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    """Make an attention function known by name, with the masks of sdpa; a second time changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)


def stock(*arguments: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Call transformers' own attention function, with the fused kernel."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out: tuple[Tensor, None] = sdpa_attention_forward(*arguments, **kwargs)
    return out
