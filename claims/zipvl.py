"""ZipVL (He et al. 2024): as many tokens in more bits as cover a layer's attention, the others in fewer."""

from __future__ import annotations

from typing import Any

from claims.cache_trials import ahead, cache_trials, uniform
from claims.caches import BLOCK, LENGTH, RECENT, SINKS, Bed, widest
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.setting import CacheSetting

OURS, SAME, EVICTED = "zipvl, 4 and 2 bits", "3 bits for all", "the important in 4 bits, no others"
LEVELS = (0.25,)
THOUSANDTHS = 1000


def _ours(bed: Bed, budget: float) -> Any:
    def make(thousandths: int) -> CacheSetting:
        selector = registry.selector("zipvl", mass=max(1, thousandths) / THOUSANDTHS)
        return CacheSetting(selector, (uniform(4), uniform(2)), sinks=SINKS, recent=RECENT, block=BLOCK)

    return widest(bed, make, THOUSANDTHS, budget)


def _same(bed: Bed, budget: float) -> Any:
    made = CacheSetting(codes=(uniform(3),), sinks=SINKS, recent=RECENT, block=BLOCK)
    return widest(bed, lambda _: made, 0, budget)


def _evicted(bed: Bed, budget: float) -> Any:
    def make(entries: int) -> Any:
        if entries < SINKS + RECENT + BLOCK:
            return None
        return CacheSetting(
            registry.selector("h2o"), (uniform(4),), entries=entries, sinks=SINKS, recent=RECENT, block=BLOCK
        )

    return widest(bed, make, LENGTH, budget)


TRIALS = cache_trials(
    "zipvl",
    "At a quarter of the cache, bits by importance, as many important tokens as a layer's attention asks for, beat the "
    "same bits for all tokens, and a fixed number of tokens.",
    "ZipVL's tiers of 4 and 2 bits, its mass the highest that keeps the budget; 3 bits for all tokens; and accumulated "
    "attention (H2O) at 4 bits, a fixed number of tokens in every layer.",
    {OURS: _ours, SAME: _same, EVICTED: _evicted},
    LEVELS,
    lambda outcomes: [
        ahead(outcomes, OURS, SAME, "perplexity", LEVELS),
        ahead(outcomes, OURS, EVICTED, "perplexity", LEVELS),
        ahead(outcomes, OURS, SAME, "recall", LEVELS),
    ],
)
