"""Floors: the smallest network that keeps a share of the original's quality.

The search never looks at held-out data: quality is measured on training texts that recovery does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isthmus.allocation.floor import smallest
from isthmus.allocation.problem import Problem
from isthmus.allocation.reach import smallest_rates
from isthmus.budget import parse_budget
from isthmus.examples import Example
from isthmus.flow.efforts import convolutional, recipe_for
from isthmus.flow.planning import Planned, flat_relevance, kept_of, make_plan
from isthmus.flow.solving import solve
from isthmus.flow.study import Study, cut, original_rates, rates_for
from isthmus.flow.together import from_main
from isthmus.network import Network, embed
from isthmus.progress import Progress, silent
from isthmus.recovery.train import recover
from isthmus.relevance.calibrate import vocabulary_relevance
from isthmus.tasks import HeldOut, Task, evaluate
from isthmus.tasks.task import LIKENESS

SEARCH_STEPS = 200
"""Recovery steps of one trial: enough to rank shares; the full recovery that follows only does better."""
VALIDATION_ROWS = 1000


def search_floor(study: Study, floor: float, *, method: str, progress: Progress = silent) -> Planned:
    """Search the smallest share of parameters whose quality after a short recovery holds the floor.

    Raises
    ------
    UnreachableBudget
        If no share that was tried holds it.
    """
    validation, examples = _validation(study)
    searched = replace(study, examples=tuple(examples))
    rates = rates_for(study, ["params"])
    original = original_rates(study, rates)
    flat = flat_relevance(study)
    least = smallest_rates(Problem(study.sites, flat, rates, {"params": original["params"]}, original))["params"]
    vocabulary = vocabulary_relevance(study.probe, study.sites, examples)
    likened = validation.metric_name == LIKENESS
    reference = embed(study.network, validation.held_out.examples, batch_size=64) if likened else None
    logits = study.network.predicts
    base = evaluate(_embedder(study.network), validation, logits=logits, seed=study.seed).value
    tried: dict[float, Planned] = {}

    def measure(share: float) -> float:
        budget = parse_budget(f"params={share:.6f}x")
        planned = make_plan(searched, budget, method=method, effort="faster", vocabulary=vocabulary, progress=progress)
        tried[share] = planned
        kept = kept_of(planned.plan)
        student = cut(searched, kept)
        solved = solve(searched, student, kept, progress)
        recipe = recipe_for(
            "faster", share, classifier=logits, solved=solved is not None, convolutional=convolutional(student)
        )
        recovered = recover(
            solved or student,
            study.network,
            searched.examples,
            replace(recipe, steps=SEARCH_STEPS, evaluate_every=0),
            kept=kept,
            seed=study.seed,
            progress=progress,
        )
        run = _embedder(recovered.network)
        value = from_main(lambda: evaluate(run, validation, reference, logits=logits, seed=study.seed).value)
        progress("floor", len(tried), 5, f"{share:.1%} of params keeps {value / base:.1%}")
        return value / base

    found = smallest(measure, floor, low=min(0.99, 1.2 * least / original["params"]), high=1.0)
    planned = tried[found.share]
    trail = tuple(f"floor: {t.share:.1%} of params keeps {t.value:.2%} on training texts" for t in found.trail)
    return replace(planned, plan=planned.plan.model_copy(update={"notes": (*planned.plan.notes, *trail)}))


def _embedder(network: Network) -> Any:
    def run(examples: Sequence[Example]) -> Any:
        return embed(network, examples, batch_size=64)

    return run


def _validation(study: Study) -> tuple[Task, list[Example]]:
    """Take labelled rows (or examples) out of what recovery trains on, and return the rest of the examples."""
    task = study.task
    if task.pairs:
        rows = task.pairs[:: max(1, len(task.pairs) // VALIDATION_ROWS)][:VALIDATION_ROWS]
        left, right, scores = (tuple(column) for column in zip(*rows, strict=True))
        held = HeldOut(left=left, right=right, scores=scores)
        rest = replace(task, held_out=held)
    elif task.labelled:
        count = min(VALIDATION_ROWS, len(task.labelled) // 4)
        rows_ = task.labelled[:count]
        held = HeldOut(examples=tuple(text for text, _ in rows_), labels=tuple(label for _, label in rows_))
        rest = replace(task, held_out=held, labelled=task.labelled[count:])
    else:
        passages = tuple(text for group in study.probe.examples for text in group)
        held = HeldOut(examples=passages)
        rest = replace(task, held_out=held)
    seen = set(held.passages)
    examples = [example for example in study.examples if example not in seen]
    return rest, examples if len(examples) > 10 else list(study.examples)
