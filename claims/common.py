"""Points: what a method makes of a network at a share of its parameters, measured alike for every method.

A point is: plan by a method, cut, recover by the same recipe, score on data that nothing is trained on. What
points share is computed once: the study, the relevance of the vocabulary, relevance that does not depend on the budget.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.cost.measure import count_parameters
from isthmus.cost.rates import Rate
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.efforts import recipe_for
from isthmus.flow.planning import allocate_lasting, estimate
from isthmus.flow.record import versions
from isthmus.flow.study import Study, cut, original_rates, rates_for, start_study
from isthmus.flow.verifying import measure_quality
from isthmus.network import Network
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.teacher import teacher_outputs
from isthmus.recovery.train import recover
from isthmus.relevance.calibrate import vocabulary_relevance
from isthmus.relevance.estimator import Relevance
from isthmus.relevance.probe import measure_network
from isthmus.relevance.registry import get
from isthmus.storage.files import write_atomic
from isthmus.storage.fingerprint import fingerprint
from isthmus.tasks import Task

SHARES = (0.75, 0.5, 0.25, 0.1)
SEEDS = (0, 1, 2)
STEPS = 150
TOLERANCE = 0.005
"""Points at one share are compared only if their measured parameters are within this of each other."""

Outcome = dict[str, Any]
Say = Callable[[str], None]

# Relevance from weights or activations alone is the same for every seed.
_SEEDLESS = frozenset({"magnitude", "activation"})


@dataclass(frozen=True)
class Point:
    """One run of the experiment; ``effort`` is empty for methods that do not train."""

    method: str
    share: float
    seed: int
    effort: str = ""

    @property
    def label(self) -> str:
        """What the tables call the method."""
        return f"{self.method} {self.effort}".strip()


def point_of(outcome: Mapping[str, Any]) -> Point:
    """Return the point that an outcome belongs to."""
    return Point(outcome["method"], float(outcome["share"]), int(outcome["seed"]), outcome["effort"])


def points_for(methods: Iterable[str], shares: Sequence[float], seeds: Sequence[int], effort: str) -> list[Point]:
    """Return every combination, seed by seed, so that what is finished early can be compared."""
    named = list(methods)
    return [
        Point(method, share, seed, effort if get(method).trains else "")
        for seed in seeds
        for share in shares
        for method in named
    ]


class Ledger:
    """A result on disk: what is the same for all its points, the points, and what is concluded from them.

    Parameters
    ----------
    path : Path
        A JSON file, written as a whole after every point.
    head : mapping
        What is written before the points; its ``record`` must be that of the points already there.
    conclude : callable
        From the outcomes to what else is written, such as a verdict.

    Raises
    ------
    BadInput
        If the file holds points of another record.
    """

    def __init__(
        self, path: Path, head: Mapping[str, Any], conclude: Callable[[list[Outcome]], Mapping[str, Any]]
    ) -> None:
        self.path, self.head, self.conclude = path, dict(head), conclude
        self.outcomes: list[Outcome] = []
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            self._check_record(found.get("record", {}))
            self.outcomes = list(found.get("points", []))

    def _check_record(self, found: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.head["record"]))
        changed = [name for name in wanted if found.get(name) != wanted[name]]
        if changed:
            raise BadInput(
                f"{self.path}: its points were made with another {changed[0]}; move the file away or give another --out"
            )

    def done(self, point: Point) -> bool:
        """Return whether a point is there."""
        return any(point_of(outcome) == point for outcome in self.outcomes)

    def add(self, outcome: Outcome) -> None:
        """Append a finished point and write the file."""
        self.outcomes.append(outcome)
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        data = {**self.head, **self.conclude(self.outcomes), "points": self.outcomes}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


class Workbench:
    """What all points of an experiment share: one network, one task, one study, one recipe.

    The study (the texts of the probe) does not change with a point's seed; the seed decides what a method draws and
    the order of the texts in recovery.
    """

    def __init__(self, network: Network, task: Task, *, steps: int, say: Say = print) -> None:
        self.steps, self.say = steps, say
        self.study = start_study(network, task)
        self.rates: dict[str, Rate] = rates_for(self.study, ["params"])
        self.original = original_rates(self.study, self.rates)
        started = time.monotonic()
        self.vocabulary = vocabulary_relevance(self.study.probe, self.study.sites, self.study.examples)
        self.reference = measure_quality([network], task)[0]
        self.outputs = teacher_outputs(network, self.study.examples, self.recipe(0.5))
        self.cache: dict[tuple[str, int], tuple[Relevance, float]] = {}
        say(
            f"{network.name}: {self.original['params'] / 1e6:.2f} M parameters, {self.reference.name} "
            f"{self.reference.value:.4f}; vocabulary and score in {time.monotonic() - started:.0f} s"
        )

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself; nothing of it is about the machine."""
        return {
            "versions": versions(),
            "network": fingerprint(self.study.network),
            "data": self.study.task.fingerprint,
            "steps": self.steps,
        }

    def recipe(self, share: float) -> Recipe:
        """Return the recovery that every method gets at a share."""
        return replace(
            recipe_for("faster", share), steps=self.steps, evaluate_every=max(self.steps // 5, 10), patience=0
        )

    def seeded(self, seed: int) -> Study:
        """Return the study with another seed."""
        return replace(self.study, seed=seed)

    def relevance(self, point: Point) -> tuple[Relevance, float]:
        """Return relevance and the seconds it took; computed once where it does not depend on the budget."""
        trains = get(point.method).trains
        key = (point.method, 0 if point.method in _SEEDLESS else point.seed)
        if not trains and key in self.cache:
            return self.cache[key]
        limits = {"params": point.share * self.original["params"]}
        started = time.monotonic()
        found = estimate(
            self.seeded(key[1]),
            point.method,
            budget=(self.rates, limits, self.original),
            effort=point.effort or "fast",
            vocabulary=self.vocabulary,
        )
        made = found, time.monotonic() - started
        if not trains:
            self.cache[key] = made
        return made

    def decide(self, point: Point) -> tuple[dict[str, tuple[int, ...]], dict[str, float], float]:
        """Return the kept units by site, the seconds of relevance and of allocation, and the predicted distortion."""
        relevance, seconds = self.relevance(point)
        started = time.monotonic()
        limits = {"params": point.share * self.original["params"]}
        allocation = allocate_lasting(self.study, relevance.nats, self.rates, limits, self.original)
        spent = {"relevance": seconds, "allocation": time.monotonic() - started}
        return allocation.kept, spent, float(sum(allocation.distortion.values()))

    def finish(self, student: Network, kept: Mapping[str, Sequence[int]], share: float, seed: int) -> Outcome:
        """Recover a narrowed network and score it.

        Raises
        ------
        IsthmusError
            If its measured parameters are not within half a percent of the share.
        """
        limit = share * self.original["params"]
        params = count_parameters(student.model)
        if abs(params / limit - 1) > TOLERANCE:
            raise IsthmusError(
                f"{student.name}: has {params} parameters, {params / limit - 1:+.2%} of the {limit:.0f} asked for; "
                "points are compared at equal parameters only"
            )
        before = measure_network(self.study.probe, student)
        recovered = recover(
            student,
            self.study.network,
            self.study.examples,
            self.recipe(share),
            kept=dict(kept),
            seed=seed,
            outputs=self.outputs,
        )
        metric = measure_quality([recovered.network], self.study.task)[0]
        table: Any = recovered.network.model.get_input_embeddings()  # type: ignore[operator]
        return {
            "params": params,
            "original_params": int(self.original["params"]),
            "embedding_params": int(table.weight.numel()),
            "metric": metric.value,
            "ci95": list(metric.ci95),
            "relative": metric.value / self.reference.value,
            "before": before,
            "after": measure_network(self.study.probe, recovered.network),
            "steps": recovered.steps,
            "recovery_seconds": recovered.seconds,
        }

    def measure(self, point: Point) -> Outcome:
        """Run one point: plan, cut, recover, score."""
        kept, spent, predicted = self.decide(point)
        student = cut(self.study, kept)
        finished = self.finish(student, kept, point.share, point.seed)
        recovery = finished.pop("recovery_seconds")
        return {
            "method": point.method,
            "effort": point.effort,
            "share": point.share,
            "seed": point.seed,
            **finished,
            "predicted": predicted,
            "seconds": {**spent, "recovery": recovery},
            "kept": {site.name: len(kept.get(site.name, range(site.units))) for site in self.study.sites},
            "heads": heads_left(self.study, kept),
        }


def heads_left(study: Study, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Return the heads that stay, layer by layer; a layer that went is left out."""
    layers = next((kept[site.name] for site in study.sites if site.kind == "layers" and site.name in kept), None)
    return {
        str(site.layer): [int(head) for head in kept.get(site.name, range(site.units))]
        for site in study.sites
        if site.kind == "heads" and site.layer is not None and (layers is None or site.layer in layers)
    }


def run_points(points: Sequence[Point], ledger: Ledger, measure: Callable[[Point], Outcome], say: Say = print) -> None:
    """Measure every point that the ledger does not have; each is on disk before the next begins.

    Raises
    ------
    IsthmusError
        At the end, if some points could not be measured: an hour's work is not lost for one of them.
    """
    missing = [point for point in points if not ledger.done(point)]
    say(f"{len(points)} points, {len(points) - len(missing)} of them there already")
    started = time.monotonic()
    failed: list[str] = []
    for number, point in enumerate(missing):
        try:
            outcome = measure(point)
        except IsthmusError as error:
            failed.append(f"{point.label} at {point.share:.0%}, seed {point.seed}: {error}")
            say(f"[{number + 1}/{len(missing)}] FAILED {failed[-1]}")
            continue
        ledger.add(outcome)
        left = (time.monotonic() - started) / (number + 1) * (len(missing) - number - 1)
        share = outcome["params"] / outcome["original_params"]
        say(
            f"[{number + 1}/{len(missing)}] {point.label} at {point.share:.0%}, seed {point.seed}: "
            f"{share:.2%} of the parameters, relative {outcome['relative']:.4f}, "
            f"{outcome['before']:.3f} -> {outcome['after']:.3f} nats, "
            f"{sum(outcome['seconds'].values()):.0f} s; about {left / 60:.0f} min left"
        )
    if failed:
        raise IsthmusError(f"{len(failed)} of {len(points)} points could not be measured; the first: {failed[0]}")
