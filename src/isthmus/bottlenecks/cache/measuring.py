"""Measuring: what a narrowed cache loses, in nats from the network with its full cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.cache import NarrowCache, allocated_bytes, layers_of
from isthmus.bottlenecks.cache.selection.scissorhands import Persistence, persistence
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput


@dataclass(frozen=True)
class CacheLoss:
    """What a narrowed cache loses.

    Parameters
    ----------
    nats : float
        Mean divergence of the next-token distributions, of the full cache's from the narrowed one's.
    agreement : float
        The share of tokens where both find the same token likeliest.
    tokens : int
        How many were looked at.
    bytes : int
        Allocated at the end, the most over the batches.
    full_bytes : int
        Of the full cache there.
    """

    nats: float
    agreement: float
    tokens: int
    bytes: int
    full_bytes: int


def in_bfloat16(model: Any) -> Any:
    """Return a copy of a model whose parameters are in bfloat16, as one that is opened in it is.

    Buffers stay as they are: among them are the angles by which positions turn, and a thousand positions on half of
    their digits are not enough.
    """
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return made


def check_batches(batches: Sequence[Tensor], prompt: int) -> None:
    """Refuse token ids that cannot be measured on.

    Raises
    ------
    BadInput
        If there are none, or one has no token after the prompt.
    """
    if not batches:
        raise BadInput("cache: no texts to measure on; give at least one batch of token ids")
    for batch in batches:
        if batch.ndim != 2 or batch.shape[1] <= prompt or prompt < 1:
            raise BadInput(
                f"cache: token ids of shape {list(batch.shape)} with a prompt of {prompt}; give (rows, tokens) with"
                " tokens left after the prompt"
            )


@torch.no_grad()
def targets(model: Any, batches: Sequence[Tensor], *, prompt: int, chunk: int = 32) -> list[Tensor]:
    """Return log-probabilities of the full cache after the prompt, ``(rows, tokens, vocabulary)`` a batch.

    Texts are read in the same pieces as `lost` reads them, so that the two differ by the cache alone.
    """
    from transformers import DynamicCache

    check_batches(batches, prompt)
    return [read(model, batch, DynamicCache(config=model.config), prompt, chunk) for batch in batches]


def lost(
    model: Any,
    settings: CacheSetting | Sequence[CacheSetting],
    batches: Sequence[Tensor],
    held: Sequence[Tensor],
    *,
    prompt: int,
    chunk: int = 32,
) -> CacheLoss:
    """Measure what a narrowed cache loses after a prompt, the true tokens being fed.

    Parameters
    ----------
    batches : sequence of Tensor, shape ``(rows, tokens)``
        Without padding.
    held : sequence of Tensor
        From `targets`.
    prompt : int
        Tokens that are read before the cache is narrowed.
    chunk : int
        Tokens that are read in one go after it.

    Raises
    ------
    BadInput
        If there is nothing to measure on.
    """
    check_batches(batches, prompt)
    nats, same, count, most, full = 0.0, 0, 0, 0, 0
    for batch, wanted in zip(batches, held, strict=True):
        cache = NarrowCache(model, settings)
        found = read(model, batch, cache, prompt, chunk)
        nats += float((wanted.exp() * (wanted - found)).sum())
        same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
        count += found.shape[0] * found.shape[1]
        most = max(most, cache.allocated_bytes())
        full = max(full, _full_bytes(cache, batch.shape[1]))
    return CacheLoss(nats / count, same / count, count, most, full)


@torch.no_grad()
def read(model: Any, batch: Tensor, cache: Any, prompt: int, chunk: int) -> Tensor:
    """Read texts through a cache, the prompt at once and the rest in chunks.

    Parameters
    ----------
    batch : Tensor, shape ``(rows, tokens)``

    Returns
    -------
    Tensor, shape ``(rows, tokens - prompt, vocabulary)``
        Log-probabilities of each token behind the prompt.
    """
    out = [model(batch[:, :prompt], past_key_values=cache).logits[:, -1:]]
    for part in torch.split(batch[:, prompt:-1], chunk, 1) if batch.shape[1] > prompt + 1 else ():
        out.append(model(part, past_key_values=cache).logits)
    return torch.log_softmax(torch.cat(out, 1).float(), -1)


def _full_bytes(cache: NarrowCache, length: int) -> int:
    narrowed = sum(
        len(layer.real_seen)
        * layer.sinks.heads
        * layer.get_seq_length()
        * (layer.form.key_dim + layer.form.value_dim)
        * torch.finfo(layer.form.dtype).bits
        // 8
        for layer in cache.narrowed
    )
    return narrowed + sum(allocated_bytes(layer) for layer in cache.layers if layer not in cache.narrowed)


def only(model: Any, index: int, setting: CacheSetting) -> list[CacheSetting]:
    """Return settings that narrow one layer and hold all of the others."""
    whole = CacheSetting(sinks=setting.sinks, recent=setting.recent, block=setting.block)
    return [setting if at == index else whole for at in range(len(layers_of(model)))]


@torch.no_grad()
def persistences(model: Any, ids: Tensor) -> list[Persistence]:
    """Return how far importance persists in each layer of a network, on texts; see `persistence`.

    Parameters
    ----------
    ids : Tensor of int64, shape ``(rows, tokens)``
        Without padding; attention of all tokens to all is held at once, layer by layer.

    Raises
    ------
    BadInput
        If the texts have fewer than 4 tokens.
    """
    if ids.ndim != 2 or ids.shape[1] < 4:
        raise BadInput(f"persistence: token ids of shape {list(ids.shape)}; give (rows, tokens), 4 tokens or more")
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return [persistence(one) for one in model(ids, use_cache=False, output_attentions=True).attentions]
    finally:
        model.set_attn_implementation(before)
