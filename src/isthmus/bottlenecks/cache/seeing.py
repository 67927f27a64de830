"""What queries see: products with the parts that a layer holds, and what selectors learn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isthmus.bottlenecks.cache.attention import Part, chunks, logits_of, mixed, softmax
from isthmus.bottlenecks.cache.history import History
from isthmus.bottlenecks.cache.roles import Look

if TYPE_CHECKING:
    from isthmus.bottlenecks.cache.layer import NarrowLayer


@dataclass(frozen=True)
class Step:
    """The queries of one call.

    Parameters
    ----------
    queries : Tensor, shape ``(B, H, G, Q, D)``
    real, late : Tensor of bool, shape ``(B, Q)``
        Not padding; and of these the last ones, as many as the selector's window.
    ordinals : Tensor of int64, shape ``(B, Q)``
        The how-manieth real token of its row each is.
    scaling : float
    """

    queries: Tensor
    real: Tensor
    late: Tensor
    ordinals: Tensor
    scaling: float

    @property
    def count(self) -> int:
        """Return Q."""
        return self.real.shape[1]

    def some(self, which: slice) -> Step:
        """Return a part of the queries."""
        return Step(
            self.queries[:, :, :, which],
            self.real[:, which],
            self.late[:, which],
            self.ordinals[:, which],
            self.scaling,
        )


def late(real: Tensor, window: int) -> Tensor:
    """Return which tokens are among the last ``window`` real ones of their row, bool of shape ``(B, Q)``."""
    behind = real.flip(1).cumsum(1).flip(1)
    return real & (behind <= window)


def attend_to_held(layer: NarrowLayer, step: Step) -> Tensor:
    """Return what queries read of a layer, ``(B, Q, heads, D)``; the newest young entries are their own tokens."""
    history = layer.tiers[0]
    read = None
    if layer.setting.reader is not None and history.longest:
        there = float(history.counts.float().mean())
        if step.count == 1:
            read = layer.setting.reader.read(step.queries, history, layer.reads, step.scaling)
        layer.reads.steps += step.count
        layer.reads.full += step.count * there
        layer.reads.read += step.count * there if read is None else read.count
    young = _young(layer, step.count)
    sinks = _part(layer.sinks)
    if read is not None:
        parts = [sinks, Part(read.keys, read.values, read.bias), young]
    else:
        parts = [sinks, *(_part(one) for one in layer.tiers), young]
    rows = step.queries.shape[0] * step.queries.shape[1] * step.queries.shape[2]
    outs = []
    for which in chunks(step.count, rows, sum(part.keys.shape[2] for part in parts)):
        own = step.some(which)
        seen = [Part(part.keys, part.values, _rows(part.bias, which)) for part in parts]
        logits = torch.cat([logits_of(own.queries, part, step.scaling) for part in seen], -1)
        probs = softmax(logits)
        outs.append(mixed(probs, seen))
        if read is not None and not read.whole:
            continue
        if layer.setting.selector.rows != "none":
            _learn(layer, own, logits, probs)
        if layer.setting.reader is not None and history.longest:
            at = sinks.keys.shape[2]
            layer.setting.reader.learn(own.queries, probs[..., at : at + history.longest], history, layer.reads)
    return torch.cat(outs, 3).flatten(1, 2).transpose(1, 2).contiguous()


def observe_prompt(layer: NarrowLayer, step: Step) -> None:
    """Let the selector see the rows of a prompt's attention that it needs; nothing else is computed."""
    selector = layer.setting.selector
    if selector.rows == "none":
        return
    keys, values, _, _ = layer.young.parts
    here = layer.young.here()[:, None, None, None]
    places = torch.arange(step.count, device=keys.device).expand_as(step.ordinals)
    if selector.rows == "window":
        # The last real rows of each row of the batch, wherever its padding is.
        most = min(selector.window, int(step.real.sum(1).max()))
        order = torch.sort(step.late, dim=1, descending=True, stable=True).indices[:, :most]
        places = torch.gather(places, 1, order)
        own = order[:, None, None, :, None].expand(*step.queries.shape[:3], -1, step.queries.shape[4])
        step = Step(
            torch.gather(step.queries, 3, own),
            torch.gather(step.late, 1, order),
            torch.gather(step.late, 1, order),
            torch.gather(step.ordinals, 1, order),
            step.scaling,
        )
    slots = torch.arange(keys.shape[2], device=keys.device)
    rows = step.queries.shape[0] * step.queries.shape[1] * step.queries.shape[2]
    for which in chunks(step.count, rows, keys.shape[2]):
        own_step = step.some(which)
        causal = slots <= places[:, which, None]
        logits = logits_of(own_step.queries, Part(keys, values, here & causal[:, None, None]), step.scaling)
        _learn(layer, own_step, logits, softmax(logits))


def _learn(layer: NarrowLayer, step: Step, logits: Tensor, probs: Tensor) -> None:
    """Add what a look tells the selector to the numbers of the entries of history and of the young ones."""
    selector = layer.setting.selector
    there = torch.cat(
        [
            *(one.real() for one in (layer.sinks, *layer.tiers)),
            layer.young.here()[:, None].expand(-1, layer.sinks.heads, -1),
        ],
        -1,
    )
    there = there[..., there.shape[-1] - logits.shape[-1] :]
    watch = step.late if selector.rows == "window" else step.real
    added = selector.observe(Look(logits, probs, watch, step.late, step.ordinals, there.cumsum(-1) - 1, layer.prompt))
    at = layer.sinks.longest
    for history in layer.tiers:
        if history.longest:
            own = added[:, :, at : at + history.longest]
            history.entries["stats"] = history.entries["stats"] + own[history.real()]
        at += history.longest
    layer.young.parts[2].add_(added[:, :, added.shape[2] - layer.young.slots :])


def _part(history: History) -> Part:
    keys, values = history.dense()
    real = history.real()
    return Part(keys, values, None if bool(real.all()) else real[:, :, None, None])


def _young(layer: NarrowLayer, count: int) -> Part:
    keys, values, _, _ = layer.young.parts
    here = layer.young.here()[:, None, None, None]
    if count > 1:
        slots = torch.arange(keys.shape[2], device=keys.device)
        here = here & (slots <= slots[-count:, None])
    elif bool(here.all()):
        return Part(keys, values, None)
    return Part(keys, values, here)


def _rows(bias: Tensor | None, which: slice) -> Tensor | None:
    return bias if bias is None or bias.shape[-2] == 1 else bias[..., which, :]
