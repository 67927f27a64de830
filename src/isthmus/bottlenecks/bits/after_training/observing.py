"""What passes a network: what enters each linear map of a layer, each norm's readers, and what attention multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.bottlenecks.attention import register_attention
from isthmus.bottlenecks.bits.rounded_attention import attention_weights
from isthmus.errors import BadInput
from isthmus.examples import Example
from isthmus.network import Network, encode, outputs
from isthmus.sites import LAYERS, discover

_WATCHING = "isthmus_watching"
_SEEN = "isthmus_seen"
BATCH = 32


@dataclass
class Multiplied:
    """What one layer's attention multiplies, batch by batch: tensors of any shape."""

    query: list[Tensor] = field(default_factory=list)
    key: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What passed.

    Parameters
    ----------
    inputs : dict of str to Tensor
        By path of each linear map, what entered it, ``(rows, columns)``.
    readers : dict of str to list of str
        By path of each layer norm, the linear maps that read what it gives and nothing else.
    attention : dict of str to Multiplied
        By path of the module of attention.
    """

    inputs: dict[str, Tensor]
    readers: dict[str, list[str]]
    attention: dict[str, Multiplied]


def layers_of(network: Network) -> str:
    """Return the path of the list of layers.

    Raises
    ------
    BadInput
        If it has none.
    """
    layers = next((site.module for site in discover(network) if site.name == LAYERS), None)
    if layers is None:
        raise BadInput(f"rounding: network {network.name} has no list of layers")
    return str(layers)


def linear_maps(model: nn.Module, layers: str) -> dict[str, nn.Linear]:
    """Return the linear maps within layers by path, in the order in which the model holds them."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(f"{layers}.")
    }


def observe(network: Network, examples: Sequence[Example], layers: str) -> Seen:
    """Run a network on examples and keep what passes.

    Raises
    ------
    BadInput
        If its attention does not go through transformers' interface, or it runs on texts whose padding would be seen.
    """
    model: Any = network.model
    register_attention(_WATCHING, _watching)
    inputs: dict[str, list[Tensor]] = {}
    given: dict[int, tuple[str, Tensor]] = {}  # with the tensor, whose id is its own while it lives
    readers: dict[str, list[str]] = {}
    attention: dict[str, Multiplied] = {}
    before = model.config._attn_implementation
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and path.startswith(f"{layers}."):
                stack.callback(module.register_forward_hook(_norm_hook(path, given, readers)).remove)
        for path, module in linear_maps(model, layers).items():
            stack.callback(module.register_forward_pre_hook(_linear_hook(path, inputs, given, readers)).remove)
        for path, module in model.named_modules():
            if path.startswith(f"{layers}."):
                vars(module)[_SEEN] = (path, attention)
                stack.callback(vars(module).pop, _SEEN)
        model.set_attn_implementation(_WATCHING)
        stack.callback(model.set_attn_implementation, before)
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                encoded = encode(network, examples[start : start + BATCH])
                if "attention_mask" in encoded and not bool(encoded["attention_mask"].all()):
                    raise BadInput("rounding: texts of unlike length are padded; levels are set on images only as yet")
                outputs(network, encoded)
                given.clear()
    if not attention:
        raise BadInput(f"rounding: the attention of {network.name} is not transformers' own, so it cannot be rounded")
    joined = {path: torch.cat(parts) for path, parts in inputs.items()}
    return Seen(joined, {norm: list(dict.fromkeys(paths)) for norm, paths in readers.items()}, attention)


def _norm_hook(path: str, given: dict[int, tuple[str, Tensor]], readers: dict[str, list[str]]) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        given[id(output)] = path, output
        readers.setdefault(path, [])

    return hook


def _linear_hook(
    path: str, inputs: dict[str, list[Tensor]], given: dict[int, tuple[str, Tensor]], readers: dict[str, list[str]]
) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        entered: Tensor = args[0]
        inputs.setdefault(path, []).append(entered.reshape(-1, entered.shape[-1]))
        if (norm := given.get(id(entered))) is not None:
            readers[norm[0]].append(path)

    return hook


def _watching(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as ever, and keep what was multiplied."""
    weights = attention_weights(query, key, attention_mask, scaling)
    path, attention = vars(module)[_SEEN]
    seen = attention.setdefault(path, Multiplied())
    for name, tensor in (("query", query), ("key", key), ("value", value), ("weights", weights)):
        getattr(seen, name).append(tensor.detach())
    return (weights @ value).transpose(1, 2).contiguous(), None
