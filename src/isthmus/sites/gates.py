"""Gates: close units, wholly or in part, without removing them.

Closing every gate of a unit gives the same outputs as removing it (invariant 1). The same gates serve the check of an
anatomy, the Taylor and Fisher estimators (gradients at an open gate) and the variational bottleneck (noisy gates).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.sites.site import Gate, Site


def _scale(value: Tensor, block: int) -> Tensor:
    return value.repeat_interleave(block) if block > 1 else value


def gated_norm(norm: nn.LayerNorm, stream: Tensor, gate: Tensor) -> Tensor:
    """Layer-normalize over open units only.

    Mean and variance are weighted by the gate, so that a gate of zeros and ones gives exactly what a narrower layer
    norm gives on the units that stay, and zeros elsewhere.

    Parameters
    ----------
    stream : Tensor, shape ``(batch, tokens, width)``
    gate : Tensor, shape ``(width,)``, from 0 (closed) to 1 (open)
    """
    weight = gate.clamp(0, 1)
    total = weight.sum().clamp(min=1e-6)
    mean = (stream * weight).sum(-1, keepdim=True) / total
    centred = stream - mean
    variance = (centred.square() * weight).sum(-1, keepdim=True) / total
    normed = centred * torch.rsqrt(variance + norm.eps)
    normed = normed * norm.weight
    if norm.bias is not None:
        normed = normed + norm.bias
    return normed * gate


def _install(model: nn.Module, gate: Gate, value: Tensor) -> list[Any]:
    if gate.where == "skip":
        layers: Any = model.get_submodule(gate.module)
        return [
            layer.register_forward_hook(_skip_hook(value[index]), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]
    module = model.get_submodule(gate.module)
    if gate.where == "input":
        scale = _scale(value, gate.block)
        return [module.register_forward_pre_hook(lambda _, args: (args[0] * scale.to(args[0].dtype), *args[1:]))]
    if gate.where == "output":
        scale = _scale(value, gate.block)
        return [module.register_forward_hook(lambda _, __, output: output * scale.to(output.dtype))]
    return [module.register_forward_hook(lambda norm, args, _: gated_norm(norm, args[0], value).to(args[0].dtype))]


def _skip_hook(value: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        entered = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return (entered + value * (output[0] - entered), *output[1:])
        return entered + value * (output - entered)

    return hook


@contextmanager
def gated(model: nn.Module, sites: Sequence[Site], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Run a model with gates on the units of its sites; the model is as before afterwards.

    Parameters
    ----------
    values : mapping of str to Tensor
        For each gated site, a tensor of shape ``(units,)``: 1 is open, 0 closed. Gradients flow to it.
    """
    handles: list[Any] = []
    try:
        for site in sites:
            if site.name in values:
                for gate in site.gates:
                    handles += _install(model, gate, values[site.name])
        yield
    finally:
        for handle in handles:
            handle.remove()


def closed_values(sites: Sequence[Site], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return gate values of one for kept units and zero for the others, for every gated site in ``kept``."""
    values = {}
    for site in sites:
        if site.name in kept and site.gates:
            value = torch.zeros(site.units)
            value[torch.as_tensor(list(kept[site.name]), dtype=torch.long)] = 1
            values[site.name] = value
    return values
