"""Trials: where predicted distortions do not add up, plans are compared by a short recovery.

What narrowing the residual stream loses at once says little of what stays lost after training, which no estimate made
on frozen weights can see. So the stream's relevance is tried at a few discounts; each plan that differs is cut,
trained for a few steps, and judged by its divergence from the original on the probe's texts, never on held-out data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from isthmus.allocation.problem import Allocation
from isthmus.flow.efforts import recipe_for
from isthmus.flow.study import Study, cut
from isthmus.flow.together import from_main
from isthmus.progress import Progress
from isthmus.recovery.train import recover
from isthmus.relevance.probe import measure_network

DISCOUNTS = {"faster": (1.0,), "fast": (1.0, 0.2, 0.05), "full": (1.0, 0.3, 0.1, 0.03)}
STEPS = {"faster": 60, "fast": 100, "full": 150}

Relevances = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]


def best_by_trial(
    study: Study,
    allocate: Callable[[Relevances], Allocation],
    nats: Relevances,
    *,
    share: Callable[[Allocation], float],
    effort: str,
    progress: Progress,
) -> tuple[Allocation, Relevances, list[str]]:
    """Return the allocation that recovers best among those at several discounts of the stream's relevance.

    Parameters
    ----------
    allocate : callable
        From relevance (nats a unit, by site) to an allocation within the budget.
    share : callable
        The share of the original's parameters that an allocation keeps; decides the learning rate of the trial.

    Returns
    -------
    tuple
        The allocation, the relevance it was made from, and a line a trial for the plan's notes.
    """
    widths = [site.name for site in study.sites if site.kind == "width"]
    candidates: dict[tuple[tuple[str, int], ...], tuple[Allocation, Relevances, float]] = {}
    for discount in DISCOUNTS[effort]:
        scaled: Relevances = {name: values * discount if name in widths else values for name, values in nats.items()}
        allocation = allocate(scaled)
        sizes = tuple(sorted((name, len(keep)) for name, keep in allocation.kept.items()))
        candidates.setdefault(sizes, (allocation, scaled, discount))
    if len(candidates) == 1:
        allocation, scaled, _ = next(iter(candidates.values()))
        return allocation, scaled, []
    results: list[tuple[float, Allocation, Relevances]] = []
    notes = []
    for number, (allocation, scaled, discount) in enumerate(candidates.values()):
        progress("trials", number, len(candidates))
        recipe = recipe_for("faster", share(allocation), classifier=study.network.pooling == "logits")
        recipe = replace(recipe, steps=STEPS[effort], warmup=10, evaluate_every=0)
        student = cut(study, allocation.kept)
        trained = recover(student, study.network, study.texts, recipe, kept=allocation.kept, seed=study.seed)
        nats_left = measure_network(study.probe, trained.network)
        results.append((nats_left, allocation, scaled))
        kept = (
            ", ".join(f"{name} {len(allocation.kept[name])}" for name in widths if name in allocation.kept) or "whole"
        )
        notes.append(f"trial with the stream's relevance times {discount:g} ({kept}): {nats_left:.3f} nats")
    progress("trials", len(candidates), len(candidates))
    best = from_main(lambda: min(range(len(results)), key=lambda number: results[number][0]))
    return results[best][1], results[best][2], notes
