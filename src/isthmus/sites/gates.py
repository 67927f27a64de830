"""Gates: close units, wholly or in part, without removing them.

Closing every gate of a unit gives the same outputs as removing it (invariant 1). The same gates serve the check of an
anatomy, the Taylor and Fisher estimators (gradients at an open gate) and the variational bottleneck (noisy gates).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.sites.experts import router_hooks
from isthmus.sites.norms import gated_rms_norm, rms_epsilon
from isthmus.sites.site import Gate, Site


def entry_scale(gate: Gate, value: Tensor, dims: int) -> Tensor:
    """Return what a gate multiplies entries by, such that it broadcasts to a tensor of ``dims`` dimensions.

    Parameters
    ----------
    value : Tensor, shape ``(units,)``
        Entries that belong to no unit of the site are multiplied by 1.
    """
    if gate.owners:
        owners = torch.as_tensor(gate.owners)
        scale = torch.where(owners >= 0, value[owners.clamp(min=0)], 1.0)
    else:
        scale = value.repeat_interleave(gate.block) if gate.block > 1 else value
    behind = dims - 1 - gate.dim % dims
    return scale.reshape(-1, *[1] * behind) if behind else scale


def unit_sums(gate: Gate, entries: Tensor, units: int) -> Tensor:
    """Add up what belongs to each unit at a gate, from ``(entries,)`` along the gate's dimension to ``(units,)``."""
    if not gate.owners:
        return entries.reshape(units, gate.block).sum(1)
    owners = torch.as_tensor(gate.owners)
    owned = owners >= 0
    return entries.new_zeros(units).index_add(0, owners[owned], entries[owned])


def gated_norm(norm: nn.LayerNorm | nn.GroupNorm, stream: Tensor, gate: Tensor) -> Tensor:
    """Layer-normalize over open units only.

    Mean and variance are weighted by the gate, so that a gate of zeros and ones gives exactly what a narrower layer
    norm gives on the units that stay, and zeros elsewhere.

    Parameters
    ----------
    stream : Tensor, shape ``(..., width)``
    gate : Tensor, shape ``(width,)``, from 0 (closed) to 1 (open)
    """
    weight = gate.clamp(0, 1)
    total = weight.sum().clamp(min=1e-6)
    mean = (stream * weight).sum(-1, keepdim=True) / total
    centred = stream - mean
    variance = (centred.square() * weight).sum(-1, keepdim=True) / total
    return _scaled(norm, centred * torch.rsqrt(variance + norm.eps)) * gate


def gated_group_norm(norm: nn.GroupNorm, maps: Tensor, gate: Tensor) -> Tensor:
    """Normalize over all positions of open channels only, as a group norm of one group.

    Parameters
    ----------
    maps : Tensor, shape ``(batch, channels, ...)``
    gate : Tensor, shape ``(channels,)``, from 0 (closed) to 1 (open)
    """
    batch, channels = maps.shape[:2]
    flat = maps.reshape(batch, channels, -1)
    weight = gate.clamp(0, 1)[:, None]
    total = (weight.sum() * flat.shape[-1]).clamp(min=1e-6)
    mean = (flat * weight).sum((1, 2), keepdim=True) / total
    centred = flat - mean
    variance = (centred.square() * weight).sum((1, 2), keepdim=True) / total
    normed = _scaled(norm, (centred * torch.rsqrt(variance + norm.eps)).transpose(1, 2)) * gate
    return normed.transpose(1, 2).reshape(maps.shape)


def _scaled(norm: nn.LayerNorm | nn.GroupNorm, normed: Tensor) -> Tensor:
    """Multiply by a norm's weight and add its bias, where it has them, along the last dimension."""
    if norm.weight is not None:
        normed = normed * norm.weight
    return normed if norm.bias is None else normed + norm.bias


def _install(model: nn.Module, gate: Gate, value: Tensor) -> list[Any]:
    if gate.where == "skip":
        layers: Any = model.get_submodule(gate.module)
        return [
            layer.register_forward_hook(_skip_hook(value[index]), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]
    module = model.get_submodule(gate.module)

    def scaled(tensor: Tensor) -> Tensor:
        return tensor * entry_scale(gate, value, tensor.dim()).to(tensor.dtype)

    if gate.where == "input":
        return [module.register_forward_pre_hook(lambda _, args: (scaled(args[0]), *args[1:]))]
    if gate.where == "router":
        return router_hooks(module, value)
    if gate.where == "within":
        return _within(module, entry_scale(gate, value, 1), scaled)
    if gate.where == "output":
        return [module.register_forward_hook(lambda _, __, output: scaled(output))]
    if (epsilon := _mean_square(module)) is not None:
        scale = entry_scale(gate, value, 1)
        return [module.register_forward_hook(lambda _, args, output: gated_rms_norm(args[0], output, scale, epsilon))]
    return [module.register_forward_hook(lambda norm, args, _: _normed(norm, gate, args[0], value))]


def _mean_square(module: nn.Module) -> float | None:
    return None if isinstance(module, nn.LayerNorm | nn.GroupNorm) else rms_epsilon(module)


def _within(module: nn.Module, scale: Tensor, scaled: Callable[[Tensor], Tensor]) -> list[Any]:
    """Let a module see only the columns of its weight, and of what enters, that are not closed; then all again."""
    keep = (scale.detach() != 0).nonzero().reshape(-1)
    whole: list[nn.Parameter] = []

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        weight: Any = module.weight
        whole.append(weight)
        module.weight = nn.Parameter(weight.detach().index_select(1, keep), requires_grad=False)
        return (scaled(args[0]).index_select(1, keep), *args[1:])

    def leave(*_: Any) -> None:
        if whole:
            module.weight = whole.pop()

    if len(keep) == len(scale):
        return [module.register_forward_pre_hook(lambda _, args: (scaled(args[0]), *args[1:]))]
    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


def _normed(norm: Any, gate: Gate, stream: Tensor, value: Tensor) -> Tensor:
    if gate.owners:
        value = entry_scale(gate, value, 1)
    if isinstance(norm, nn.GroupNorm):
        return gated_group_norm(norm, stream, value).to(stream.dtype)
    moved = gated_norm(norm, stream.movedim(gate.dim, -1), value)
    return moved.movedim(-1, gate.dim).to(stream.dtype)


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
        placed = [(gate, values[site.name]) for site in sites if site.name in values for gate in site.gates]
        # What passes a layer by is closed after it, so layers come first.
        for gate, value in sorted(placed, key=lambda one: one[0].where != "skip"):
            handles += _install(model, gate, value)
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
