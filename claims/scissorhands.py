"""Scissorhands (Liu et al. 2023): what was important stays important, so that it can be kept at a fixed budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from claims import caches
from claims.cache_trials import BASELINES, COLUMNS, WINDOW, ahead, cache_trials, measuring, selecting, uniform
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.cache.measuring import persistences

OURS, CODED, LAYERS = "scissorhands", "scissorhands, 4 bits", "persistence of a layer"
LEVELS = (0.25,)
ARMS = {OURS: selecting("scissorhands"), CODED: selecting("scissorhands", uniform(4)), WINDOW: BASELINES[WINDOW]}
ABOVE = 1.5


def measure(point: Point) -> Mapping[str, Any]:
    """Return a point's figures, with the persistence of importance in each layer on the same sequences."""
    found = dict(measuring(ARMS)(point))
    if point.arm == OURS and point.level == LEVELS[0]:
        bed = caches.bed(point.seed)
        told = persistences(bed.model, bed.rows[:2])
        found["ratios"] = [one.ratio for one in told]
        found["chances"] = [one.chance for one in told]
        found["persists"] = min(one.ratio / max(one.chance, 1e-9) for one in told)
    return found


def persists(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether importance persists in every layer."""
    rule = f"in every layer and repetition the persistence ratio is {ABOVE} times what chance gives, or more"
    ours = [one for one in outcomes if one.get("ratios")]
    if not ours:
        return part_of("importance persists", rule, UNTESTED)
    passed = [a > ABOVE * b for one in ours for a, b in zip(one["ratios"], one["chances"], strict=True)]
    both = enumerate(zip(ours[0]["ratios"], ours[0]["chances"], strict=True))
    text = ", ".join(f"layer {at}: {a:.2f} where chance gives {b:.2f}" for at, (a, b) in both)
    return part_of("importance persists", rule, share_passed(passed), text)


def coded(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether four bits beside the selection are worth it: at equal bytes they hold more entries."""
    part = ahead(outcomes, CODED, OURS, "perplexity", LEVELS)
    return {**part, "name": "perplexity: with 4 bits, at equal bytes"}


TRIALS = cache_trials(
    "scissorhands",
    "Which tokens are important persists from step to step in every layer; keeping these beats a window at a "
    "quarter of the cache, and four bits beside it lose little.",
    "Scissorhands in bfloat16 and in 4 bits beside a window with sinks, each with as many entries as allocate the same "
    "bytes.",
    ARMS,
    LEVELS,
    lambda outcomes: [
        persists(outcomes),
        ahead(outcomes, OURS, WINDOW, "perplexity", LEVELS),
        ahead(outcomes, OURS, WINDOW, "recall", LEVELS),
        coded(outcomes),
    ],
    measure=measure,
    columns=(*COLUMNS, Column("persists", "least persistence over chance", "{:.2f}")),
)
