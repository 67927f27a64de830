"""Vision networks beside Torch-Pruning: half the multiply-accumulates, the same recovery, in one run.

Torch-Pruning prunes by each of its importances (magnitude and Taylor, of single layers and of groups) with each of its
settings (ratios local, global or isomorphic; residual streams too or only what is within blocks), to the measured
multiply-accumulates that our plan has. Of magnitudes and of Taylor scores the one with the least divergence after the
cut is recovered. Taylor scores get the gradients of the labels' cross-entropy, as its documentation does. Ours is what
``narrow`` does without training: cut, and solved anew in closed form. Batch norms are estimated anew on both sides, of
an original restated on the same images.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from claims.common import Ledger, Outcome, Point, Say, point_of, run_points
from claims.data import CIFAR, FASHION, image_task, why_not
from claims.tables import scores

from benchmarks.peer import VERSION, Handed, ask, label_gradients, rebuild, torch_pruning
from benchmarks.pruning_networks import spelled_out
from isthmus.cost.examples import one_example
from isthmus.cost.measure import count_parameters, measure_macs
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.efforts import convolutional, recipe_for
from isthmus.flow.planning import allocate_lasting, estimate
from isthmus.flow.record import versions
from isthmus.flow.solving import solve
from isthmus.flow.study import cut, original_rates, rates_for, start_study
from isthmus.flow.verifying import measure_quality
from isthmus.network import Network
from isthmus.recovery.norms import estimate_norms, restate_norms
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.train import recover
from isthmus.relevance.probe import measure_network
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task
from isthmus.tasks.data import data_folder

OURS, THEIRS = "isthmus", "torch-pruning"
METHOD, SHARE, NORMS = "surgeon", 0.5, 1024
FAMILIES = {"magnitude": ("magnitude", "group magnitude"), "taylor": ("taylor", "group taylor")}
TOLERANCE = 0.0025
"""Their multiply-accumulates are at most so much below ours, and never above."""


@dataclass(frozen=True)
class Case:
    """A network with its data.

    Parameters
    ----------
    name : str
    source : str
        What is opened; ``{models}`` is the folder of weights beside the folder of data.
    data : str
        Within the folder of data.
    kind : str
        As `benchmarks.pruning_networks` has it.
    steps : int
        Of recovery.
    target : float
        By how many points of accuracy we are to be ahead.
    """

    name: str
    source: str
    data: str
    kind: str
    steps: int
    target: float


CASES = {
    "resnet56": Case(
        "resnet56", "cifar10-resnet56={models}/cifar10-resnet56.safetensors", CIFAR, "cifar-resnet", 80, 0.5
    ),
    "vit": Case("vit", "vit-fashion", FASHION, "vit", 100, 1.0),
}


class Bench:
    """Our runs and theirs, of one network."""

    def __init__(self, case: Case, network: Network, task: Task, python: Path, *, steps: int, say: Say = print) -> None:
        self.case, self.python, self.steps, self.say = case, python, steps, say
        self.study = start_study(network, task)
        self.rates = rates_for(self.study, ["macs"])
        self.original = original_rates(self.study, self.rates)
        self.reference = measure_quality([network], task)[0]
        self.cut_by_them: dict[str, tuple[Network, dict[str, Any]]] = {}
        self.target = 0
        say(f"{case.name}: {self.original['macs'] / 1e6:.1f} M multiply-accumulates, {self.reference.value:.2%}")

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself."""
        return {
            "versions": {**versions(), "torch-pruning": VERSION},
            "network": fingerprint(self.study.network),
            "data": self.study.task.fingerprint,
            "steps": self.steps,
            "images": len(self.study.task.held_out.examples),
            "original": {"metric": self.reference.value, "macs": self.original["macs"]},
        }

    def recipe(self, student: Network) -> Recipe:
        """Return the recovery that all get."""
        chosen = recipe_for("faster", SHARE, classifier=True, convolutional=convolutional(student))
        every = max(self.steps // 5, 10)
        return replace(chosen, steps=self.steps, evaluate_every=every, patience=0, labels=0.1)

    def macs(self, network: Network) -> int:
        """Return the multiply-accumulates of an image, counted as it runs."""
        return measure_macs(network.model, one_example(network, 1))

    def ours(self, seed: int) -> tuple[Network, dict[str, Any]]:
        """Return our narrowed network."""
        study = replace(self.study, seed=seed)
        limits = {"macs": SHARE * self.original["macs"]}
        relevance = estimate(study, METHOD, budget=(self.rates, limits, self.original))
        allocation = allocate_lasting(study, relevance.nats, self.rates, limits, self.original)
        student = cut(study, allocation.kept)
        student = solve(study, student, allocation.kept) or student
        kept = {site.name: len(allocation.kept.get(site.name, range(site.units))) for site in study.sites}
        return student, {"kept": kept}

    def theirs(self, family: str, target: int) -> tuple[Network, dict[str, Any]]:
        """Return what Torch-Pruning makes by the best of a family's importances and settings; made once."""
        if family not in self.cut_by_them:
            self.cut_by_them[family] = self._theirs(family, target)
        network, extra = self.cut_by_them[family]
        return replace(network, model=copy.deepcopy(network.model)), extra

    def _theirs(self, family: str, target: int) -> tuple[Network, dict[str, Any]]:
        network = replace(self.study.network, model=copy.deepcopy(self.study.network.model))
        restate_norms(network, self.study.examples[:NORMS])
        if self.case.kind == "cifar-resnet":
            spelled_out(network.model)
        handed = Handed(network, self.case.kind, target, TOLERANCE)
        gradients = label_gradients(network, self.study.task.labelled[:NORMS]) if family == "taylor" else {}
        found: list[tuple[float, str, Network]] = []
        for importance in FAMILIES[family]:
            with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
                for setting in ask(self.python, Path(name), handed, importance, gradients):
                    made = rebuild(handed, Path(name), setting)
                    estimate_norms(made, self.study.examples[:NORMS])
                    label = f"{importance}, {setting['name']}"
                    found.append((measure_network(self.study.probe, made), label, made))
                    self.say(f"  {label}: {found[-1][0]:.3f} nats, {setting['seconds']:.0f} s")
        if not found:
            raise IsthmusError(f"torch-pruning: no setting of {family} reaches {target} multiply-accumulates")
        _, chosen, best = min(found, key=lambda entry: entry[0])
        return best, {"setting": chosen, "tried": {label: nats for nats, label, _ in found}}

    def measure(self, point: Point) -> Outcome:
        """Run one point: cut, estimate batch norms anew, recover, score."""
        started = time.monotonic()
        if point.method == OURS:
            student, extra = self.ours(point.seed)
            self.target = self.macs(student)
        else:
            if not self.target:
                raise IsthmusError("our own point of this seed comes first; move the result away and run it again")
            student, extra = self.theirs(point.method.removeprefix(f"{THEIRS} "), self.target)
        spent = time.monotonic() - started
        before = measure_network(self.study.probe, student)
        recovered = recover(
            student,
            self.study.network,
            self.study.examples,
            self.recipe(student),
            seed=point.seed,
            task=self.study.task,
        )
        metric = measure_quality([recovered.network], self.study.task)[0]
        return {
            "method": point.method,
            "effort": point.effort,
            "share": point.share,
            "seed": point.seed,
            "params": count_parameters(recovered.network.model),
            "original_params": count_parameters(self.study.network.model),
            "macs": self.macs(recovered.network),
            "metric": metric.value,
            "ci95": list(metric.ci95),
            "relative": metric.value / self.reference.value,
            "before": before,
            "after": measure_network(self.study.probe, recovered.network),
            "steps": recovered.steps,
            "seconds": {"cut": spent, "recovery": recovered.seconds},
            **extra,
        }


def conclude(outcomes: Sequence[Outcome], target: float) -> dict[str, Any]:
    """Return by how many points of accuracy we are ahead of each of theirs, and whether that is what was aimed for."""
    cells = {label: score for (label, _), score in scores(outcomes, "metric").items()}
    leads = (
        {label: 100 * (cells[OURS].mean - cell.mean) for label, cell in cells.items() if label != OURS}
        if OURS in cells
        else {}
    )
    by_seed = {(point_of(one).label, point_of(one).seed): 100 * one["metric"] for one in outcomes}
    spread = {}
    for label in leads:
        gaps = [
            value - by_seed[label, seed]
            for (own, seed), value in by_seed.items()
            if own == OURS and (label, seed) in by_seed
        ]
        spread[label] = statistics.stdev(gaps) if len(gaps) > 1 else 0.0
    macs = [one["macs"] for one in outcomes]
    return {
        "leads": leads,
        "spread": spread,
        "apart": max(macs) / min(macs) - 1 if macs else 0.0,
        "target": target,
        "met": bool(leads) and min(leads.values()) >= target,
    }


def wanted_points(seeds: Sequence[int]) -> list[Point]:
    """Return the points, ours and theirs by turns."""
    methods = (OURS, *(f"{THEIRS} {family}" for family in FAMILIES))
    return [Point(method, SHARE, seed) for seed in seeds for method in methods]


def run(
    folder: Path,
    *,
    networks: Sequence[str],
    seeds: Sequence[int],
    steps: int | None = None,
    validation: bool = False,
    say: Say = print,
) -> None:
    """Run the comparison of each network, going on from what ``folder`` holds.

    Raises
    ------
    BadInput
        If a network is unknown, or data is not on this machine.
    """
    for name in networks:
        if name not in CASES:
            raise BadInput(f"vision_pruning: unknown network {name!r}; the networks are {', '.join(CASES)}")
    data, missing = data_folder(), why_not(*(CASES[name].data for name in networks))
    if data is None or missing:
        raise BadInput(f"vision_pruning: skipped, {missing}")
    python = torch_pruning(say)
    for name in networks:
        case = CASES[name]
        network = open_network(case.source.format(models=data.parent / "models"))
        task = image_task(data, case.data, validation=validation)
        bench = Bench(case, network, task, python, steps=steps or case.steps, say=say)
        head = {"benchmark": "vision_pruning", "network": name, "record": bench.record()}
        out = folder / f"vision_pruning_{name}.json"
        ledger = Ledger(out, head, partial(conclude, target=case.target))
        run_points(wanted_points(seeds), ledger, bench.measure, say)
        ledger.write()
