"""The cache in a budget: planned on the network that is left, saved with it, and measured as bytes allocated.

Shares are of what the original's full cache takes in 16 bits, at a sequence of as many tokens as the network reads
(`Network.max_length`); all is planned and measured in bfloat16, on copies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.allocation.cache import menu, plan_cache
from isthmus.bottlenecks.cache.cache import NarrowCache, allocated_bytes
from isthmus.bottlenecks.cache.measuring import in_bfloat16, read
from isthmus.bottlenecks.cache.saving import keep_settings, kept_settings, new_cache
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.budget import Budget, Limit
from isthmus.errors import BadInput
from isthmus.examples import Example, texts_of
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.storage.fingerprint import fingerprint
from isthmus.tasks.recall import SHORTEST, recalled

CACHE = "cache"
HELD = 0.99
"""Of a budget that is planned for: what is evicted as texts go on, and with it the bytes, is not the same for each."""
ROWS = 4
"""Calibration texts of full length."""
MEASURED_ROWS = 16
CHUNK = 32
RECENT, SINKS = 16, 4
"""Held as they are, of which an eighth of a short sequence must not consist."""


def limit_of(budget: Budget) -> Limit | None:
    """Return a budget's limit of the cache; None where it has none."""
    return next((limit for limit in budget.limits if limit.currency == CACHE), None)


def rest_of(budget: Budget) -> Budget:
    """Return a budget without its limit of the cache."""
    return Budget(tuple(limit for limit in budget.limits if limit.currency != CACHE))


def planned(network: Network) -> bool:
    """Return whether a network knows how its cache is narrowed."""
    return kept_settings(network.model) is not None


def check_keeps_cache(network: Network) -> None:
    """Refuse a budget of the cache for a network that keeps none.

    Raises
    ------
    BadInput
        If it is no language model.
    """
    if not network.continues:
        raise BadInput(f"network {network.name}: keeps no cache, for it continues no texts; leave cache= out")


def whole_plan(network: Network, budget: Budget, method: str, seed: int) -> Plan:
    """Return the plan of a budget of the cache alone: everything else stays."""
    return Plan(
        network=network.name, fingerprint=fingerprint(network), method=method, budget=str(budget), seed=seed,
        decisions=(),
    )  # fmt: skip


def full_bytes(network: Network) -> int:
    """Return what the full cache of a sequence of `Network.max_length` tokens takes in 16 bits, the last not held."""
    from transformers import DynamicCache

    model: Any = network.model
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros((1, network.max_length - 1), dtype=torch.long), past_key_values=cache)
    item: int = model.dtype.itemsize
    return sum(allocated_bytes(layer) for layer in cache.layers) * 2 // item


def narrow_cache(
    network: Network, examples: Sequence[Example], budget: float, *, progress: Progress = silent
) -> tuple[CacheSetting, ...]:
    """Plan the cache of a network, a setting a layer.

    Parameters
    ----------
    examples : sequence of str
        Texts to calibrate on.
    budget : float
        Bytes of a sequence of `Network.max_length` tokens, of which the last is not held.

    Raises
    ------
    UnreachableBudget
        If no plan keeps the budget.
    BadInput
        If the texts are too few, or the network's cache cannot be narrowed.
    """
    length = network.max_length
    rows = _rows(network, texts_of(list(examples), "task"), length, MEASURED_ROWS)
    model = in_bfloat16(network.model)

    def taken(settings: Sequence[CacheSetting]) -> int:
        most = 0
        for row in rows:
            cache = NarrowCache(model, settings)
            read(model, row[None], cache, length // 2, CHUNK)
            most = max(most, cache.allocated_bytes())
        return most

    return plan_cache(
        model, [rows[:ROWS]], budget=int(HELD * budget), length=length - 1, prompt=length // 2,
        choices=menu(length, sinks=SINKS, recent=RECENT, block=RECENT), measure=taken, progress=progress,
    ).settings  # fmt: skip


def with_cache(network: Network, settings: Sequence[CacheSetting]) -> Network:
    """Return a network that knows how its cache is narrowed."""
    model = copy.copy(network.model)
    keep_settings(model, settings)
    return replace(network, model=model)


def measure_cache(network: Network, texts: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Return what a network's cache takes and what is predicted through it, the planned one or else the full one.

    Returns
    -------
    dict
        ``cache_bytes`` (allocated at the end of a sequence of ``cache_tokens``), ``cache_perplexity`` (of the second
        half of held-out sequences, the first being read before the cache is narrowed) and ``cache_recall`` by kind.
    """
    from transformers import DynamicCache

    model = in_bfloat16(network.model)

    def fresh() -> Any:
        return new_cache(model) if planned(network) else DynamicCache(config=model.config)

    length = network.max_length
    rows = _rows(network, texts, length, MEASURED_ROWS)
    nats, taken = [], 0
    for row in rows:
        cache = fresh()
        said = read(model, row[None], cache, length // 2, CHUNK)[0]
        nats.append(-said.gather(1, row[length // 2 :, None]).mean().item())
        taken = max(taken, sum(allocated_bytes(layer) for layer in cache.layers))
    found: dict[str, Any] = {
        "cache_bytes": taken,
        "cache_tokens": length - 1,
        "cache_perplexity": math.exp(float(np.mean(nats))),
    }
    if length >= SHORTEST:
        ids = rows.reshape(-1).numpy().astype(np.int32)
        found["cache_recall"] = recalled(model, network.tokenizer, length, ids, seed=seed, cache=fresh)
    return found


def _rows(network: Network, texts: Sequence[str], length: int, most: int) -> Tensor:
    """Return token ids of texts, one after another in rows of a length, ``(rows, length)``."""
    needed, ids = length * most, []
    for text in texts:
        ids += network.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]
        if len(ids) >= needed:
            break
    if len(ids) < length:
        raise BadInput(f"cache: {len(ids)} tokens of text, {length} are needed; give more text")
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)
