"""Beside Torch-Pruning: the same encoder, the same measured parameters, the same recovery, in one run.

Torch-Pruning has no site for the vocabulary. It is therefore given the network with the vocabulary (and the unused
pooler) that our plan keeps, and prunes the rest (width, heads, neurons) to the parameters that ours has. Of its
settings (ratios local, global or isomorphic; with the width or without) the one with the least divergence after the
cut is recovered. Its Taylor importance gets the gradients of the loss that our own Taylor and Fisher estimators use.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from claims.common import TOLERANCE, Ledger, Outcome, Point, Say, Workbench, run_points
from claims.data import encoder_task, why_not
from claims.tables import scores

from benchmarks.peer import ROOT, VERSION, Handed, ask, rebuild, torch_pruning
from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.study import cut
from isthmus.network import Network, encode, pool
from isthmus.relevance.probe import Probe, measure_network
from isthmus.relevance.statistics import MICRO, sampled_loss
from isthmus.sites import WIDTH
from isthmus.storage.files import canonical, write_atomic
from isthmus.storage.opening import open as open_network
from isthmus.tasks.data import data_folder

IMPORTANCES = ("magnitude", "taylor")
NEEDS = ("stsb/train.csv", "stsb/dev.csv", "sst2/train.tsv")
WORK = ROOT / "build" / "benchmarks"
OURS, THEIRS = "isthmus", "torch-pruning"

Kept = dict[str, tuple[int, ...]]


class Bench:
    """Our runs and theirs, on one workbench."""

    def __init__(self, work: Workbench, effort: str, python: Path, folder: Path) -> None:
        self.work, self.effort, self.python = work, effort, python
        key = hashlib.sha256(canonical([work.record(), effort])).hexdigest()[:16]
        self.folder = folder / f"plans-{key}"

    def our_plan(self, share: float, seed: int) -> tuple[Kept, dict[str, float], float]:
        """Return our plan; kept on disk, for their runs start from its vocabulary."""
        path = self.folder / f"{share:g}-{seed}.json"
        if not path.exists():
            kept, spent, predicted = self.work.decide(Point("vib", share, seed, self.effort))
            data = {"kept": {name: list(units) for name, units in kept.items()}, "spent": spent, "predicted": predicted}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(data).encode())
        found = json.loads(path.read_text())
        return {name: tuple(units) for name, units in found["kept"].items()}, found["spent"], found["predicted"]

    def measure(self, point: Point) -> Outcome:
        """Run one point of ours or of theirs."""
        identity = {"method": point.method, "effort": point.effort, "share": point.share, "seed": point.seed}
        kept, spent, _ = self.our_plan(point.share, point.seed)
        student = cut(self.work.study, kept)
        extra: dict[str, Any] = {}
        if point.method != OURS:
            started = time.monotonic()
            network, kept = self._trimmed(kept)
            handed = Handed(network, "bert", count_parameters(student.model), TOLERANCE / 2)
            student, kept, extra = self._theirs(handed, kept, point.method.removeprefix(f"{THEIRS} "), point.seed)
            spent = {"relevance": time.monotonic() - started, "allocation": 0.0}
        finished = self.work.finish(student, kept, point.share, point.seed)
        recovery = finished.pop("recovery_seconds")
        return {**identity, **finished, "seconds": {**spent, "recovery": recovery}, **extra}

    def _trimmed(self, kept: Kept) -> tuple[Network, Kept]:
        part = {
            site.name: kept[site.name]
            for site in self.work.study.sites
            if site.kind in ("vocabulary", "feature") and site.name in kept
        }
        return cut(self.work.study, part), part

    def _theirs(self, handed: Handed, kept: Kept, importance: str, seed: int) -> tuple[Network, Kept, dict[str, Any]]:
        """Let Torch-Pruning prune with each of its settings, and return the best before recovery."""
        probe = self.work.study.probe
        units = next(site.units for site in self.work.study.sites if site.name == WIDTH)
        with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
            folder = Path(name)
            gradients = loss_gradients(handed.network, probe, seed) if importance == "taylor" else {}
            found: list[tuple[float, str, Network]] = []
            for setting in ask(self.python, folder, handed, f"group {importance}", gradients):
                network = rebuild(handed, folder, setting)
                found.append((measure_network(probe, network), setting["name"], network))
        if not found:
            raise IsthmusError(f"torch-pruning: no setting of {importance} reaches {handed.target} parameters")
        _, chosen, best = min(found, key=lambda entry: entry[0])
        width = kept_width(best, handed.network, units)
        kept = kept if width is None else {**kept, WIDTH: width}
        return best, kept, {"setting": chosen, "tried": {setting: nats for nats, setting, _ in found}}


def loss_gradients(network: Network, probe: Probe, seed: int) -> dict[str, torch.Tensor]:
    """Return the gradient of every weight, for Taylor importance.

    The loss is that of our own estimators (``isthmus.relevance.statistics``): of the likeness of texts within groups of
    16, with labels drawn from the network's own distribution.
    """
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(network.model).requires_grad_(True)
    for group in probe.examples:
        for start in range(0, len(group), MICRO):
            examples = group[start : start + MICRO]
            if len(examples) < 3:
                continue
            inputs = encode(network, examples)
            output = pool(network, model(**inputs), inputs.get("attention_mask"))
            sampled_loss(output, network.pooling, generator).backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def kept_width(network: Network, original: Network, units: int) -> tuple[int, ...] | None:
    """Return the units of the original's width that stay in a network, told by their columns; None where all do."""
    table = "embeddings.word_embeddings.weight"
    ours, theirs = (one.model.get_parameter(table).detach() for one in (network, original))
    if ours.shape[1] == units:
        return None
    columns = {column.numpy().tobytes(): place for place, column in enumerate(theirs.T)}
    return tuple(columns[column.numpy().tobytes()] for column in ours.T)


def conclude(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return, share by share, whether our mean is above each of theirs."""
    cells = scores(outcomes)
    labels = list(dict.fromkeys(label for label, _ in cells))
    ours = next((label for label in labels if label.split()[0] == OURS), None)
    ahead: dict[str, dict[str, float]] = {}
    for label, share in cells:
        if label != ours and ours is not None and (ours, share) in cells:
            ahead.setdefault(label, {})[f"{share:g}"] = cells[ours, share].mean - cells[label, share].mean
    leads = [lead for found in ahead.values() for lead in found.values()]
    return {"leads": ahead, "ahead_at_every_point": bool(leads) and min(leads) > 0}


def wanted_points(shares: Sequence[float], seeds: Sequence[int], effort: str) -> list[Point]:
    """Return the points, ours and theirs by turns."""
    return [
        Point(method, share, seed, effort if method == OURS else "")
        for seed in seeds
        for share in shares
        for method in (OURS, *(f"{THEIRS} {importance}" for importance in IMPORTANCES))
    ]


def run(
    out: Path,
    *,
    model: str,
    shares: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    effort: str,
    say: Say = print,
) -> dict[str, Any]:
    """Run the comparison, going on from what ``out`` holds.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    """
    folder = data_folder()
    missing = why_not(*NEEDS)
    if folder is None or missing:
        raise BadInput(f"torch_pruning: skipped, {missing}")
    python = torch_pruning(say)
    work = Workbench(open_network(model), encoder_task(folder), steps=steps, say=say)
    record = {**work.record(), "effort": effort}
    record["versions"] = {**record["versions"], "torch-pruning": VERSION}
    ledger = Ledger(out, {"benchmark": "torch_pruning", "record": record}, conclude)
    points = wanted_points(shares, seeds, effort)
    run_points(points, ledger, Bench(work, effort, python, WORK).measure, say)
    ledger.write()
    concluded = conclude(ledger.outcomes)
    say(f"ahead at every point: {concluded['ahead_at_every_point']}")
    return concluded
