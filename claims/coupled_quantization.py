"""Coupled quantization (Zhang et al. 2024): channels say less together than apart, and can be coded at a bit each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from claims import caches
from claims.cache_trials import COLUMNS, ahead, cache_trials, setting, uniform
from claims.caches import through
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.cache.codes.coupled import Coupled, learnt

OURS, PAIRS, ALONE, EVEN = "8 channels", "2 channels", "1 channel", "1 bit on a uniform grid"
COUPLED = {OURS: 8, PAIRS: 2, ALONE: 1}
LEVELS = (1.0,)
BINS = 8


@cache
def _layers(seed: int) -> list[tuple[Any, Any]]:
    from transformers import DynamicCache

    bed = caches.bed(seed)
    held = DynamicCache(config=bed.model.config)
    with torch.no_grad():
        bed.model(bed.calibration, past_key_values=held)
    return [(layer.keys, layer.values) for layer in held.layers]


def _tables(seed: int, channels: int) -> list[Coupled]:
    return [learnt(keys, values, channels=channels, bits=channels, seed=seed) for keys, values in _layers(seed)]


def measure(point: Point) -> Mapping[str, Any]:
    """Return a point's figures: all entries at one bit a channel; tables are shared and counted apart."""
    bed = caches.bed(point.seed)
    if point.arm == EVEN:
        settings = [setting(None, uniform(1), None)] * len(_layers(point.seed))
        return caches.measured(bed, through(bed.model, settings))
    codes = _tables(point.seed, COUPLED[point.arm])
    settings = [setting(None, one, None) for one in codes]
    found: dict[str, Any] = dict(caches.measured(bed, through(bed.model, settings)))
    found["tables"] = sum(one.shared_bytes() for one in codes)
    if point.arm == OURS:
        found["gaps"] = entropy_gaps(point.seed)
    return found


def entropy_gaps(seed: int) -> list[float]:
    """Return the bits by which the entropies of 1, 2 and 3 channels of keys, binned, exceed their joint one.

    Bins of each channel hold equally many entries; means over layers, heads and groups of neighbouring channels.
    """
    gaps = []
    for size in (1, 2, 3):
        found = []
        for keys, _ in _layers(seed):
            numbers = keys.float().permute(1, 3, 0, 2).flatten(2).numpy()
            for head in numbers:
                ranks = head.argsort(1).argsort(1) * BINS // head.shape[1]
                for start in range(0, len(ranks) - size + 1, 8):
                    group = ranks[start : start + size]
                    apart = sum(_entropy(one) for one in group)
                    joint = _entropy((group * BINS ** np.arange(size)[:, None]).sum(0))
                    found.append(apart - joint)
        gaps.append(float(np.mean(found)))
    return gaps


def _entropy(symbols: np.ndarray[Any, Any]) -> float:
    _, counts = np.unique(symbols, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def dependent(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether channels depend on one another, the more the more there are."""
    rule = "the entropies of single channels exceed the joint one, by more for three channels than for two"
    ours = [one["gaps"] for one in outcomes if one.get("gaps")]
    if not ours:
        return part_of("channels say less together", rule, UNTESTED)
    text = f"{ours[0][1]:.2f} bits for two channels, {ours[0][2]:.2f} for three"
    return part_of("channels say less together", rule, share_passed([0 < two < three for _, two, three in ours]), text)


TRIALS = cache_trials(
    "coupled-quantization",
    "Channels of keys say less together than apart, and at one bit a channel a table of 8 coupled channels gives a "
    "lower perplexity than tables of single channels and a uniform grid.",
    "All entries at one bit a channel: k-means tables of 8, 2 and 1 channels learnt on calibration texts (counted "
    "apart, for all sequences share them), and a uniform grid with its steps.",
    {},
    dict.fromkeys((OURS, PAIRS, ALONE, EVEN), LEVELS),
    lambda outcomes: [
        dependent(outcomes),
        ahead(outcomes, OURS, ALONE, "perplexity", LEVELS),
        ahead(outcomes, OURS, PAIRS, "perplexity", LEVELS),
        ahead(outcomes, OURS, EVEN, "perplexity", LEVELS),
    ],
    measure=measure,
    columns=(*COLUMNS, Column("tables", "bytes of tables", "{:,.0f}")),
    level="bits a channel",
)
