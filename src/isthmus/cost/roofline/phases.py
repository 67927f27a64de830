"""Phases: the passes of a network that are asked about, traced for given sizes.

``encode`` is one pass over ``tokens`` tokens (or an image), ``prefill`` the same of a decoder that fills its cache, and
``decode`` the step that makes ``tokens`` more tokens, one as a rule, after ``cache_tokens``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from isthmus.cost.roofline.operators import Pass
from isthmus.cost.roofline.tracing import cache_tensors, trace
from isthmus.errors import BadInput, UnsupportedNetwork, unknown

PHASES = ("encode", "prefill", "decode")
TOKENS, CACHE_TOKENS = 128, 512


def default_phase(model: nn.Module) -> str:
    """Return what a network mostly does: ``prefill`` where it generates text, ``encode`` otherwise."""
    generates = getattr(model, "can_generate", None)
    return "prefill" if generates is not None and generates() else "encode"


def most_tokens(model: nn.Module) -> int | None:
    """Return how many tokens a network has positions for; None where nothing limits them."""
    config: Any = getattr(model, "config", None)
    limits = [getattr(config, "max_position_embeddings", None)]
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in ("position_embeddings", "wpe"):
            # Families that count positions from the padding token's use none up to that one.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known) if known else None


def trace_phase(
    model: nn.Module, phase: str, *, batch: int = 1, tokens: int | None = None, cache_tokens: int | None = None
) -> Pass:
    """Trace a phase of a network.

    Parameters
    ----------
    model : nn.Module
        A transformers model on the meta device.
    phase : {"encode", "prefill", "decode"}
    batch : int
        Texts (or images) at once.
    tokens : int, optional
        Of each text: 128, or one that is decoded. Images have the size that the config says.
    cache_tokens : int, optional
        Tokens in the cache before a ``decode``: 512 if not given.

    Raises
    ------
    BadInput
        If the phase is unknown, a size does not make sense or goes beyond the network's positions, or the network
        keeps no cache.
    UnsupportedNetwork
        If it reads neither texts nor images, or cannot be traced without its weights.
    """
    if phase not in PHASES:
        raise unknown("phase", phase, PHASES)
    for name, size in (("batch", batch), ("tokens", tokens), ("cache tokens", cache_tokens)):
        if size is not None and size < 1:
            raise BadInput(f"roofline: {name} must be at least 1, not {size}")
    if phase != "decode" and cache_tokens is not None:
        raise BadInput(f"roofline: --cache-tokens belongs to the phase decode, not to {phase}; leave it out")
    reads = str(getattr(model, "main_input_name", "input_ids"))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UnsupportedNetwork(f"roofline: {type(model).__name__} has an encoder and a decoder; give one alone")
    if reads == "pixel_values":
        return _image(model, phase, batch, tokens)
    if reads != "input_ids":
        raise UnsupportedNetwork(f"roofline: {type(model).__name__} reads {reads}; texts and images are known")
    before = (CACHE_TOKENS if cache_tokens is None else cache_tokens) if phase == "decode" else 0
    count = tokens if tokens is not None else (1 if phase == "decode" else TOKENS)
    limit = most_tokens(model)
    if limit is not None and before + count > limit:
        raise BadInput(
            f"roofline: {before + count} tokens are beyond the {limit} positions of {type(model).__name__}; "
            "ask for fewer"
        )
    ids = torch.ones((batch, count), dtype=torch.long, device="meta")
    if phase == "encode":
        # Networks that can keep a cache build their mask from its length, and look into the mask where there is none.
        kept = {"use_cache": True} if _caches(model) else {}
        return trace(model, {"input_ids": ids, **kept}, cached=False)
    if phase == "prefill":
        traced = trace(model, {"input_ids": ids, "use_cache": True}) if _caches(model) else None
    else:
        traced = _decode(model, ids, before)
    if traced is None or not traced.cache:
        raise BadInput(f"roofline: {type(model).__name__} keeps no cache of keys and values; ask for the phase encode")
    return traced


def _decode(model: nn.Module, ids: torch.Tensor, before: int) -> Pass | None:
    if not _caches(model):
        return None
    prompt = torch.ones((ids.shape[0], before), dtype=torch.long, device="meta")
    with torch.no_grad():
        past = getattr(model.eval()(input_ids=prompt, use_cache=True), "past_key_values", None)
    if not cache_tensors(past):
        return None
    return trace(model, {"input_ids": ids, "past_key_values": past, "use_cache": True})


def _caches(model: nn.Module) -> bool:
    return "use_cache" in _arguments(model) and "past_key_values" in _arguments(model)


def _arguments(model: nn.Module) -> Any:
    import inspect

    return inspect.signature(model.forward).parameters


def _image(model: nn.Module, phase: str, batch: int, tokens: int | None) -> Pass:
    if phase != "encode":
        raise BadInput(f"roofline: {type(model).__name__} reads images, which have no phase {phase}; ask for encode")
    if tokens is not None:
        raise BadInput(f"roofline: {type(model).__name__} reads images, whose size its config says; leave --tokens out")
    config: Any = model.config
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch, int(getattr(config, "num_channels", 3)), height, width)
    return trace(model, {"pixel_values": torch.zeros(shape, device="meta")})
