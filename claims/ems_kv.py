"""EMS (Li et al. 2024): evicting by head from a global and a local score, and merging what is evicted."""

from __future__ import annotations

from claims.cache_trials import BASELINES, H2O, WINDOW, ahead, cache_trials, selecting

OURS, EVICTED = "evict then merge", "evict only"
LEVELS = (0.25,)
ARMS = {OURS: selecting("ems-kv"), EVICTED: selecting("ems-kv", similarity=2.0), **BASELINES}

TRIALS = cache_trials(
    "ems-kv",
    "At a quarter of the cache, evicting by head from a global and a local score beats a window and "
    "accumulated attention in perplexity and recall, and merging beats evicting only.",
    "Evict-then-merge, the same without merging (no pair of keys is alike enough), a window with sinks and accumulated "
    "attention (H2O), each with as many entries as allocate the same bytes.",
    ARMS,
    LEVELS,
    lambda outcomes: [
        ahead(outcomes, OURS, WINDOW, "perplexity", LEVELS),
        ahead(outcomes, OURS, H2O, "perplexity", LEVELS),
        ahead(outcomes, OURS, WINDOW, "recall", LEVELS),
        ahead(outcomes, OURS, H2O, "recall", LEVELS),
        ahead(outcomes, OURS, EVICTED, "perplexity", LEVELS),
    ],
)
