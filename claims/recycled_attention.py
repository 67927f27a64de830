"""Recycled attention (Xu et al. 2024): steps between full ones read what the last full one attended to."""

from __future__ import annotations

from typing import Any

from claims.cache_trials import H2O, WINDOW, ahead, cache_trials, setting
from claims.caches import BLOCK, RECENT, SINKS, Bed
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.setting import CacheSetting

OURS, TURNED = "recycled", "recycled, sooner where queries turn"
LEVELS = (64.0,)


def _reading(similarity: float) -> Any:
    def fit(bed: Bed, entries: float) -> CacheSetting:
        reader = registry.reader("recycled-attention", top=int(entries), stride=4, similarity=similarity)
        return CacheSetting(reader=reader, sinks=SINKS, recent=RECENT, block=BLOCK)

    return fit


def _holding(name: str) -> Any:
    return lambda bed, entries: setting(registry.selector(name), Plain(), int(entries) + SINKS + RECENT + BLOCK)


ARMS = {OURS: _reading(-1.0), TURNED: _reading(0.9), WINDOW: _holding("window"), H2O: _holding("h2o")}


def _measure(point: Any) -> Any:
    from claims import caches
    from claims.caches import through

    bed = caches.bed(point.seed)
    return caches.measured(bed, through(bed.model, ARMS[point.arm](bed, point.level)))


TRIALS = cache_trials(
    "recycled-attention",
    "Reading as many entries a step, those that the last full step attended to give a lower perplexity and more recall "
    "than a window or accumulated attention that hold no others, and refreshing where queries turn beats a "
    "fixed stride.",
    "Every fourth step reads all, the others the top entries of the last full one; the whole cache stays, so bytes are "
    "not equal, entries read are.",
    ARMS,
    LEVELS,
    lambda outcomes: [
        ahead(outcomes, OURS, WINDOW, "perplexity", LEVELS),
        ahead(outcomes, OURS, H2O, "perplexity", LEVELS),
        ahead(outcomes, OURS, WINDOW, "recall", LEVELS),
        ahead(outcomes, OURS, H2O, "recall", LEVELS),
        ahead(outcomes, TURNED, OURS, "perplexity", LEVELS),
    ],
    measure=_measure,
    level="entries read",
)
