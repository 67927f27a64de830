"""Keyformer (Adnan et al. 2024): key tokens by attention under Gumbel noise keep more than a window does."""

from __future__ import annotations

from claims.cache_trials import BASELINES, H2O, WINDOW, ahead, cache_trials, selecting

OURS = "keyformer"
LEVELS = (0.25,)
ARMS = {OURS: selecting("keyformer"), **BASELINES}

TRIALS = cache_trials(
    "keyformer",
    "At a quarter of the cache, key tokens chosen by noisy accumulated attention give a lower perplexity and "
    "more recall than a window with sinks, and no worse ones than plain accumulated attention.",
    "Keyformer beside a window with sinks and accumulated attention (H2O), each with as many entries as allocate the "
    "same bytes.",
    ARMS,
    LEVELS,
    lambda outcomes: [
        ahead(outcomes, OURS, WINDOW, "perplexity", LEVELS),
        ahead(outcomes, OURS, WINDOW, "recall", LEVELS),
        ahead(outcomes, OURS, H2O, "perplexity", LEVELS),
    ],
)
