"""Settling: after a step, tokens that are no longer recent join the sinks or history, a block at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.roles import Candidates, Choice
from isthmus.errors import BadInput

if TYPE_CHECKING:
    from isthmus.bottlenecks.cache.layer import NarrowLayer


def settle(layer: NarrowLayer) -> None:
    """Move the oldest young entries of each row on, so that ``recent`` and less than a block more stay young.

    A row's entries move by its own count of real tokens: what it holds does not depend on the batch around it.
    """
    setting = layer.setting
    here = layer.young.here()
    count = here.sum(1)
    to_sinks = torch.minimum(setting.sinks - layer.sinks.counts[:, 0].long(), count)
    spare = (count - to_sinks - setting.recent).clamp_min(0)
    to_history = spare // setting.block * setting.block
    if not bool((to_sinks + to_history).any()):
        return
    rank = here.cumsum(1) - 1
    if bool(to_sinks.any()):
        _to_sinks(layer, here & (rank < to_sinks[:, None]))
        here = layer.young.here()
        rank = here.cumsum(1) - 1
    if bool(to_history.any()):
        _to_history(layer, here & (rank < to_history[:, None]))


def _to_sinks(layer: NarrowLayer, which: Tensor) -> None:
    keys, values, _, real = layer.young.take(which)
    every = real[:, None].expand(-1, keys.shape[1], -1)
    layer.sinks.append(keys[every], values[every], every.sum(-1), {})


def _to_history(layer: NarrowLayer, which: Tensor) -> None:
    setting, selector = layer.setting, layer.setting.selector
    flushing = which.any(1)
    keys, values, stats, real = layer.young.take(which)
    for what, tensor in (("keys", keys), ("values", values)):
        if not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"cache: {what} of layer {layer.index} are not finite; check the network and its precision")
    born = selector.born(keys)
    if born is not None:
        stats = stats + born
    every = real[:, None].expand(-1, keys.shape[1], -1)
    choice = _choose(layer, keys, values, stats, every, flushing)
    at = 0
    for tier, history in enumerate(layer.tiers):
        if history.longest:
            own = history.real()
            history.keep(choice.past[:, :, at : at + own.shape[2]][own])
            at += own.shape[2]
        fresh = choice.tiers == tier
        extras = {"stats": stats[fresh]} if selector.channels else {}
        if setting.reader is not None:
            extras |= _extras(layer, choice.keys, every, fresh)
        history.append(choice.keys[fresh], choice.values[fresh], fresh.sum(-1), extras)
    if selector.fresh:
        _start_anew(layer, flushing)
    if setting.reader is not None:
        setting.reader.joined(layer.reads, flushing)


def _choose(layer: NarrowLayer, keys: Tensor, values: Tensor, stats: Tensor, every: Tensor, flushing: Tensor) -> Choice:
    held = [history for history in layer.tiers if history.longest]
    old_stats = [
        history.spread(history.entries["stats"])
        if layer.setting.selector.channels
        else stats.new_zeros((*history.counts.shape, history.longest, 0))
        for history in held
    ]
    candidates = Candidates(
        stats=torch.cat([*old_stats, stats], 2),
        real=torch.cat([*(history.real() for history in held), every], 2),
        past=sum(history.longest for history in held),
        keys=keys,
        values=values,
        flushing=flushing,
    )
    choice = layer.setting.selector.choose(candidates, layer.setting.allowed)
    old = torch.where(flushing[:, None, None], choice.past, candidates.real[..., : candidates.past])
    return Choice(old, torch.where(every, choice.tiers, -1), choice.keys, choice.values)


def _extras(layer: NarrowLayer, keys: Tensor, every: Tensor, fresh: Tensor) -> dict[str, Tensor]:
    reader = layer.setting.reader
    assert reader is not None
    if not reader.centred:
        return reader.extras(keys[fresh], layer.reads, keys[fresh])
    total = (keys.float() * every[..., None]).sum(2) / every.sum(2).clamp_min(1)[..., None]
    mean = layer.reads.held.get("mean")
    if mean is None:
        mean = total
    # A row that joins later than others of its batch gets its own mean then.
    late = (layer.tiers[0].counts == 0)[..., None]
    mean = torch.where(late, total, mean)
    layer.reads.held["mean"] = mean
    own = mean[:, :, None].expand(*fresh.shape, -1)[fresh]
    return reader.extras(keys[fresh], layer.reads, own)


def _start_anew(layer: NarrowLayer, flushing: Tensor) -> None:
    layer.young.parts[2][flushing] = 0.0
    for history in layer.tiers:
        if history.longest:
            dense = flushing[:, None, None].expand_as(history.real())[history.real()]
            history.entries["stats"] = history.entries["stats"].masked_fill(dense[:, None], 0.0)
