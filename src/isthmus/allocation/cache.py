"""One budget of bytes over the caches of all layers: how many entries each keeps, and at how many bits.

What each setting of a layer loses is measured with that layer alone narrowed; what it holds follows from shapes. One
setting a layer, at most so many bytes, the least sum of nats: a multiple-choice knapsack, solved exactly as a
mixed-integer program. The losses of layers do not quite add up, so the plan is measured as a whole as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isthmus.bottlenecks.cache.cache import NarrowCache
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.measuring import CacheLoss, check_batches, lost, only, targets
from isthmus.bottlenecks.cache.predicting import full_bytes, predicted_bytes
from isthmus.bottlenecks.cache.registry import selector
from isthmus.bottlenecks.cache.roles import Code
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput, UnreachableBudget
from isthmus.progress import Progress, silent

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
"""Of the tokens, that a layer may hold."""
BITS = (8, 4, 3, 2)
_TRIES = 8


@dataclass(frozen=True)
class CachePlan:
    """How the cache of each layer is narrowed.

    Parameters
    ----------
    settings : tuple of CacheSetting
        One a layer.
    length : int
        Tokens of a sequence that the bytes are for.
    bytes : int
        What a sequence of that length takes after a prompt; at most ``budget``.
    budget, full_bytes : int
        What it may take, and what the full cache does.
    predicted : float
        The sum of what the layers lose alone, nats a token.
    measured : CacheLoss
        What is lost with all of them narrowed, on the calibration texts.
    """

    settings: tuple[CacheSetting, ...]
    length: int
    bytes: int
    budget: int
    full_bytes: int
    predicted: float
    measured: CacheLoss


def menu(
    length: int, *, method: str = "snapkv", sinks: int = 4, recent: int = 32, block: int = 32
) -> tuple[CacheSetting, ...]:
    """Return the settings that a layer may take: every share of the tokens at every number of bits.

    Parameters
    ----------
    length : int
        Tokens of a sequence.
    method : str
        The selector.
    """
    codes: tuple[Code, ...] = (Plain(), *(Uniform(bits, bits, tokens=block) for bits in BITS))
    made = []
    for share in SHARES:
        entries = int(share * length)
        if share < 1 and entries < sinks + recent + block:
            continue
        for code in codes:
            if share == 1:
                made.append(CacheSetting(codes=(code,), sinks=sinks, recent=recent, block=block))
            else:
                made.append(
                    CacheSetting(selector(method), (code,), entries=entries, sinks=sinks, recent=recent, block=block)
                )
    return tuple(made)


def plan_cache(
    model: Any,
    batches: Sequence[Tensor],
    *,
    budget: int,
    length: int,
    prompt: int,
    choices: Sequence[CacheSetting] | None = None,
    losses: npt.NDArray[np.float64] | None = None,
    measure: Callable[[Sequence[CacheSetting]], int] | None = None,
    progress: Progress = silent,
) -> CachePlan:
    """Choose a setting for the cache of each layer, so that a sequence fits the budget and the least is lost.

    Parameters
    ----------
    batches : sequence of Tensor, shape ``(rows, tokens)``
        Calibration texts, without padding.
    budget : int
        Bytes of one sequence.
    length : int
        Its tokens; what settings lose is seen best on texts of about that length.
    prompt : int
        Tokens of the calibration texts that are read before their cache is narrowed.
    choices : sequence of CacheSetting or None
        What a layer may take; None: `menu`.
    losses : ndarray, shape ``(layers, settings)``, or None
        What `lost_alone` returned, where several budgets are planned for; None: it is measured.
    measure : callable or None
        Returns the bytes that settings, one a layer, take in use, which must keep the budget too. It is more than after
        a prompt: what is evicted later leaves groups of a code in part, scales and all.

    Raises
    ------
    BadInput
        If there is nothing to choose from or to measure on.
    UnreachableBudget
        If no choice fits; the message names the least bytes that do.
    """
    check_batches(batches, prompt)
    if length < 1:
        raise BadInput(f"cache plan: a length of {length} tokens; give 1 or more")
    offered = tuple(choices) if choices is not None else menu(length)
    if not offered:
        raise BadInput("cache plan: no settings to choose from; give at least one")
    shapes, rest = _shapes(model, batches[0], length)
    bytes_ = np.array(
        [
            [
                predicted_bytes(one, rows=1, heads=heads, key_dim=key, value_dim=value, item=item, length=length)
                for one in offered
            ]
            for heads, key, value, item in shapes.values()
        ]
    )
    least = int(bytes_.min(1).sum()) + rest
    if least > budget:
        raise UnreachableBudget(
            f"cache: {budget} bytes for {length} tokens cannot be met; the least is {least} bytes: allow that, or offer"
            " coarser settings"
        )
    held = targets(model, batches, prompt=prompt)
    nats = lost_alone(model, batches, offered, prompt=prompt, progress=progress) if losses is None else losses
    room = budget
    for _ in range(_TRIES):
        picked = cheapest(nats, bytes_, room - rest)
        chosen = only(model, -1, CacheSetting())
        for row, index in enumerate(shapes):
            chosen[index] = offered[picked[row]]
        measured = lost(model, chosen, batches, held, prompt=prompt)
        taken = 0 if measure is None else measure(chosen)
        if taken <= budget or room == least:
            break
        room = max(least, int(room * budget / taken) - 1)
    rows = np.arange(len(shapes))
    return CachePlan(
        settings=tuple(chosen),
        length=length,
        bytes=int(bytes_[rows, picked].sum()) + rest,
        budget=budget,
        full_bytes=sum(full_bytes(1, *shape, length) for shape in shapes.values()) + rest,
        predicted=float(nats[rows, picked].sum()),
        measured=measured,
    )


def lost_alone(
    model: Any, batches: Sequence[Tensor], choices: Sequence[CacheSetting], *, prompt: int, progress: Progress = silent
) -> npt.NDArray[np.float64]:
    """Return the nats a token that each setting loses in each narrowed layer alone, shape ``(layers, settings)``."""
    held = targets(model, batches, prompt=prompt)
    layers = [layer.index for layer in NarrowCache(model, CacheSetting()).narrowed]
    nats = np.empty((len(layers), len(choices)))
    for row, index in enumerate(layers):
        for column, one in enumerate(choices):
            nats[row, column] = lost(model, only(model, index, one), batches, held, prompt=prompt).nats
            progress("measuring settings", row * len(choices) + column + 1, nats.size)
    return nats


def cheapest(nats: npt.NDArray[np.float64], bytes_: npt.NDArray[np.int64], budget: int) -> npt.NDArray[np.int64]:
    """Return one column for each row, of the least sum of nats within the budget of bytes.

    Parameters
    ----------
    nats, bytes_ : ndarray, shape ``(layers, settings)``
    budget : int
        At least the sum of the rows' fewest bytes.

    Returns
    -------
    ndarray of int, shape ``(layers,)``
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    layers, settings = nats.shape
    scale = max(float(np.abs(nats).max()), 1e-300)
    one_hot = csr_matrix(
        (np.ones(nats.size), (np.repeat(np.arange(layers), settings), np.arange(nats.size))), shape=(layers, nats.size)
    )
    # In shares of the budget, so that the solver's tolerance is one of these; half a byte keeps rounding out.
    spent = LinearConstraint(bytes_.reshape(1, -1) / budget, -np.inf, 1 + 0.5 / budget)
    result = milp(
        nats.ravel() / scale,
        integrality=np.ones(nats.size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_hot, 1, 1), spent],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"the integer program of the cache ended with: {result.message}")
    picked: npt.NDArray[np.int64] = result.x.reshape(layers, settings).argmax(1)
    return picked


@torch.no_grad()
def _shapes(model: Any, ids: Tensor, length: int) -> tuple[dict[int, tuple[int, int, int, int]], int]:
    """Return heads, channels of keys and values, bytes of a number by narrowed layer; and the bytes of the others."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise BadInput(f"cache plan: {length} tokens, and the network has {positions} positions; plan for fewer")
    cache = NarrowCache(model, CacheSetting())
    row = ids[:1].repeat(1, -(-length // ids.shape[1]))[:, :length]
    model(row, past_key_values=cache)
    shapes = {
        layer.index: (
            layer.sinks.heads,
            layer.form.key_dim,
            layer.form.value_dim,
            torch.finfo(layer.form.dtype).bits // 8,
        )
        for layer in cache.narrowed
    }
    return shapes, cache.allocated_bytes() - sum(layer.allocated_bytes() for layer in cache.narrowed)
