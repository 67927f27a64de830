"""What narrowing to a tenth took away: the audit of three classifiers, one of text and two of images, three seeds each.

A classifier is narrowed to a tenth of its parameters and recovered, then audited beside its original. As an original
chooses exemplars by its own errors too, a second network, which had no part in the choice, is asked about them where
there is one: the text classifier trained from another seed, and a deeper ResNet.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims.common import Ledger, Outcome, Point, Say, run_points
from claims.data import CIFAR, FASHION, image_task, why_not
from claims.tables import markdown_table

import isthmus
from isthmus.audit.resampling import Estimate
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput
from isthmus.examples import Example
from isthmus.flow.efforts import convolutional, recipe_for
from isthmus.flow.planning import allocate_lasting, estimate
from isthmus.flow.record import versions
from isthmus.flow.solving import solve
from isthmus.flow.study import cut, original_rates, rates_for, start_study
from isthmus.network import Network, encode, outputs, tokenize
from isthmus.recovery.train import recover
from isthmus.relevance.probe import measure_network
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task, load_task
from isthmus.tasks.data import data_folder

SHARE, METHOD = 0.1, "surgeon"
BATCH = 100
TUNING_STEPS, TUNING_BATCH, TUNING_RATE, TUNING_TOKENS = 330, 32, 5e-5, 64


@dataclass(frozen=True)
class Case:
    """A classifier with its data.

    Parameters
    ----------
    original, judge : callable
        Make the network, and one that had no part in choosing exemplars (or None).
    task : Task
    steps : int
        Of recovery.
    """

    original: Callable[[], Network]
    judge: Callable[[], Network] | None
    task: Task
    steps: int


def text_classifier(task: Task, seed: int) -> Network:
    """Return MiniLM with a linear head over its classification token, trained on a task's labelled texts."""
    from transformers import BertForSequenceClassification

    base = open_network("minilm")
    config: Any = copy.deepcopy(base.model.config)
    config.num_labels = len(task.label_names)
    torch.manual_seed(seed)
    model: Any = BertForSequenceClassification(config)
    model.bert.load_state_dict(base.model.state_dict(), strict=False)
    network = replace(base, name=f"minilm-sst2-{seed}", model=model.eval(), pooling="logits", normalize=False)
    short = replace(network, max_length=TUNING_TOKENS)
    adam = torch.optim.AdamW(model.parameters(), lr=TUNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, TUNING_RATE, total_steps=TUNING_STEPS)
    drawing = np.random.default_rng(seed)
    for _ in range(TUNING_STEPS):
        rows = [task.labelled[row] for row in drawing.choice(len(task.labelled), TUNING_BATCH, replace=False)]
        inputs = tokenize(short, [str(text) for text, _ in rows])
        labels = torch.tensor([label for _, label in rows])
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(**inputs).logits, labels).backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    return network


def cases(data: Path) -> dict[str, Callable[[], Case]]:
    """Return the cases by name, each made when it is asked for."""
    resnet = f"{data.parent / 'models'}/cifar10-resnet"

    def text() -> Case:
        task = load_task(f"classify:{data / 'sst2'}")
        return Case(partial(text_classifier, task, 0), partial(text_classifier, task, 1), task, 600)

    def small() -> Case:
        made = [partial(open_network, f"cifar10-resnet{depth}={resnet}{depth}.safetensors") for depth in (20, 56)]
        return Case(made[0], made[1], image_task(data, CIFAR), 300)

    def vit() -> Case:
        return Case(partial(open_network, "vit-fashion"), None, image_task(data, FASHION), 300)

    return {"sst2": text, "resnet20": small, "vit": vit}


def predicted(network: Network, examples: Sequence[Example]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the class that a network gives each example."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(examples), BATCH):
            logits = outputs(network, encode(network, examples[start : start + BATCH]))
            found.append(logits.argmax(-1).numpy())
    return np.concatenate(found)


class Bench:
    """The audits of one classifier."""

    def __init__(self, name: str, case: Case, say: Say) -> None:
        self.name, self.task, self.steps = name, case.task, case.steps
        self.original = case.original()
        self.judge = None if case.judge is None else predicted(case.judge(), case.task.held_out.examples)
        self.chosen = predicted(self.original, case.task.held_out.examples)
        self.labels = np.asarray(case.task.held_out.labels)
        say(f"{name}: original {np.mean(self.chosen == self.labels):.2%} of {len(self.labels)} examples")

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself."""
        return {
            "versions": versions(),
            "network": fingerprint(self.original),
            "data": self.task.fingerprint,
            "steps": self.steps,
        }

    def narrowed(self, seed: int) -> tuple[Network, dict[str, float]]:
        """Return the classifier at a tenth of its parameters, recovered, and its nats before and after recovery."""
        study = start_study(self.original, self.task, seed=seed)
        rates = rates_for(study, ["params"])
        original = original_rates(study, rates)
        limits = {"params": SHARE * original["params"]}
        relevance = estimate(study, METHOD, budget=(rates, limits, original))
        kept = allocate_lasting(study, relevance.nats, rates, limits, original).kept
        student = cut(study, kept)
        solved = solve(study, student, kept)
        student = solved or student
        before = measure_network(study.probe, student)
        recipe = recipe_for(
            "faster", SHARE, classifier=True, solved=solved is not None, convolutional=convolutional(student)
        )
        recipe = replace(recipe, steps=self.steps, evaluate_every=max(self.steps // 5, 10), patience=0, labels=0.1)
        done = recover(student, self.original, study.examples, recipe, kept=kept, seed=seed, task=self.task)
        nats = {"before": before, "after": measure_network(study.probe, done.network)}
        return replace(done.network, name=f"{self.name} at {SHARE:.0%}, seed {seed}"), nats

    def measure(self, point: Point) -> Outcome:
        """Narrow by one seed, and audit."""
        started = time.monotonic()
        small, nats = self.narrowed(point.seed)
        spent = time.monotonic() - started
        found = isthmus.audit(self.original, small, self.task, parts="exemplars,slices", seed=point.seed).report
        exemplars, damage = found.exemplars, found.damage
        if exemplars is None or damage is None:
            raise BadInput(f"audits: {self.name} was audited without labels")
        losses = [one.loss.value for one in found.networks]
        apart = predicted(small, self.task.held_out.examples) != self.chosen
        return {
            "method": point.method,
            "effort": point.effort,
            "share": point.share,
            "seed": point.seed,
            "params": count_parameters(small.model),
            "original_params": count_parameters(self.original.model),
            "loss": losses,
            "relative": (1 - losses[1]) / max(1 - losses[0], 1e-9),
            **nats,
            "exemplars": exemplars.count,
            "disagree": int(apart.sum()),
            "of": exemplars.of,
            "accuracy": _estimate(exemplars.accuracy),
            "accuracy_all": _estimate(exemplars.accuracy_all),
            "gap": _estimate(exemplars.gap),
            "judge": None if self.judge is None else _judged(self.judge == self.labels, apart),
            "damage": _estimate(damage.overall),
            "slices": [
                {
                    "name": row.name,
                    "count": row.count,
                    "damage": _estimate(row.damage),
                    "excess": row.excess,
                    "p": row.p_value,
                    "found": row.found,
                }
                for row in damage.rows
            ],
            "seconds": {"narrow": spent, "audit": time.monotonic() - started - spent},
        }


def _judged(right: np.ndarray[Any, np.dtype[np.bool_]], apart: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    return {"exemplars": float(right[apart].mean()) if apart.any() else 0.0, "all": float(right.mean())}


def _estimate(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def conclude(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return whether exemplars are clearly harder in every seed, and what the judge and the slices say."""
    gaps = [one["gap"] for one in outcomes]
    damaged = [{row["name"] for row in one["slices"] if row["found"]} for one in outcomes]
    judged = [one["judge"] for one in outcomes if one["judge"] is not None]
    return {
        "harder": bool(gaps) and all(gap is not None and gap["high"] < 0 for gap in gaps),
        "judge": [100 * (one["exemplars"] - one["all"]) for one in judged],
        "damaged": sorted(set.intersection(*damaged)) if damaged else [],
        "slices": min((len(one["slices"]) for one in outcomes), default=0),
    }


def run(folder: Path, *, networks: Sequence[str] | None, seeds: Sequence[int], say: Say = print) -> None:
    """Run the audits, going on from what ``folder`` holds.

    Raises
    ------
    BadInput
        If a network is unknown, or data is not on this machine.
    """
    data, missing = data_folder(), why_not("sst2", CIFAR, FASHION)
    if data is None or missing:
        raise BadInput(f"audits: skipped, {missing}")
    known = cases(data)
    for name in networks or known:
        if name not in known:
            raise BadInput(f"audits: unknown network {name!r}; the networks are {', '.join(known)}")
        bench = Bench(name, known[name](), say)
        head = {"benchmark": "audits", "network": name, "record": bench.record()}
        ledger = Ledger(folder / f"audits_{name}.json", head, conclude)
        run_points([Point(METHOD, SHARE, seed) for seed in seeds], ledger, bench.measure, say)
        ledger.write()


def section(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the part of docs/benchmarks.md about these results."""
    rows = []
    for result in results:
        for point in result["points"]:
            gap, judge = point["gap"], point["judge"]
            found = [row for row in point["slices"] if row["found"]]
            rows.append(
                [
                    result["network"],
                    str(point["seed"]),
                    f"{point['params'] / point['original_params']:.1%}",
                    f"{1 - point['loss'][0]:.1%} → {1 - point['loss'][1]:.1%}",
                    f"{point['exemplars']} of {point['of']}",
                    f"{100 * gap['value']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})",
                    "" if judge is None else f"{100 * (judge['exemplars'] - judge['all']):+.1f}",
                    f"{len(found)} of {len(point['slices'])}",
                    "; ".join(f"{row['name']} {_points(row['damage'])}" for row in found[:2]),
                ]
            )
    targets = [
        [
            result["network"],
            "exemplars clearly harder than average for the original, in every seed",
            "; ".join(f"{100 * point['gap']['value']:+.1f}" for point in result["points"]),
            "yes" if result["harder"] else "**no**",
            ", ".join(result["damaged"][:6]),
        ]
        for result in results
    ]
    return [
        "## Audits of classifiers at a tenth of their parameters",
        "",
        markdown_table(
            [
                "network",
                "seed",
                "parameters",
                "accuracy",
                "exemplars",
                "original's accuracy on them, points from all",
                "another network's",
                "slices damaged beyond the rest",
                "the first two, points of error",
            ],
            rows,
        ),
        "",
        "Exemplars are the held-out examples on which original and narrowed network disagree. The original helped to "
        "choose them, so its accuracy on them is lowered by its own chance errors; another network, where there is one "
        "(the text classifier from another seed, a ResNet-56 for the ResNet-20), had no part in it. Intervals at "
        "95 %, those of slices for all slices at once.",
        "",
        markdown_table(["network", "target", "reached", "met", "slices damaged in every seed"], targets),
        "",
    ]


def _points(damage: Mapping[str, float]) -> str:
    return f"{100 * damage['value']:+.1f} ({100 * damage['low']:+.1f} to {100 * damage['high']:+.1f})"


def results_in(folder: Path) -> list[dict[str, Any]]:
    """Return the results that are there."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("audits_*.json"))]
