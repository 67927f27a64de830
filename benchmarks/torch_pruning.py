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
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from claims.common import TOLERANCE, Ledger, Outcome, Point, Say, Workbench, run_points
from claims.data import encoder_task, why_not
from claims.tables import scores
from safetensors.torch import load_file, save_file

from isthmus.cost.measure import count_parameters
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.study import cut
from isthmus.network import Network, encode, pool
from isthmus.relevance.probe import Probe, measure_network
from isthmus.relevance.statistics import MICRO, sampled_loss
from isthmus.sites import WIDTH, Site
from isthmus.storage.files import canonical, write_atomic
from isthmus.storage.narrowing import apply_narrowing
from isthmus.storage.opening import open as open_network
from isthmus.tasks.data import data_folder

VERSION = "1.6.1"
IMPORTANCES = ("magnitude", "taylor")
NEEDS = ("stsb/train.csv", "stsb/dev.csv", "sst2/train.tsv")
ROOT = Path(__file__).resolve().parents[1]
VENV, WORK = ROOT / ".venv-bench", ROOT / "build" / "benchmarks"
OURS, THEIRS = "isthmus", "torch-pruning"

Kept = dict[str, tuple[int, ...]]


def environment(say: Say = print) -> Path:
    """Return the Python of the environment that has Torch-Pruning, making it where it is not there.

    Raises
    ------
    IsthmusError
        If it cannot be installed.
    """
    python, stamp = VENV / "bin" / "python", VENV / ".installed"
    wanted = f"torch-pruning=={VERSION}"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"installing {wanted} into {VENV.name} (a few minutes the first time)")
    packages = [wanted, "torch", "transformers", "numpy", "safetensors"]
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(VENV)],
        [*pip, "-c", str(ROOT / "constraints.txt"), *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise IsthmusError(f"{VENV.name}: {lines[-1] if lines else 'cannot be made'}; remove it and try again")
    (VENV / ".gitignore").write_text("*\n")
    stamp.write_text(wanted)
    return python


@dataclass(frozen=True)
class Handed:
    """What Torch-Pruning is given: the network with our vocabulary, how it was cut, and the parameters to reach."""

    network: Network
    kept: Kept
    target: int


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
            handed = Handed(*self._trimmed(kept), count_parameters(student.model))
            student, kept, extra = self._theirs(handed, point.method.removeprefix(f"{THEIRS} "), point.seed)
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

    def _theirs(self, handed: Handed, importance: str, seed: int) -> tuple[Network, Kept, dict[str, Any]]:
        """Let Torch-Pruning prune with each of its settings, and return the best before recovery."""
        probe = self.work.study.probe
        with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
            folder = Path(name)
            gradients = loss_gradients(handed.network, probe, seed) if importance == "taylor" else {}
            settings = ask(self.python, folder, handed, importance, gradients)
            found: list[tuple[float, str, Network, Kept]] = []
            for setting in settings:
                tensors = load_file(folder / f"{setting['name']}.safetensors")
                network, kept = rebuild(handed, tensors, setting, self.work.study.sites)
                found.append((measure_network(probe, network), setting["name"], network, kept))
        if not found:
            raise IsthmusError(f"torch-pruning: no setting of {importance} reaches {handed.target} parameters")
        best = min(found, key=lambda entry: entry[0])
        tried = {setting: divergence for divergence, setting, *_ in found}
        return best[2], best[3], {"setting": best[1], "tried": tried}


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


def ask(
    python: Path, folder: Path, handed: Handed, importance: str, gradients: Mapping[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """Have the worker prune in its own environment, and return the settings that reached the target.

    Raises
    ------
    IsthmusError
        If the worker fails.
    """
    model: Any = handed.network.model
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}, folder / "in.safetensors"
    )
    if gradients:
        save_file(dict(gradients), folder / "gradients.safetensors")
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    request = {
        "config": config,
        "weights": str(folder / "in.safetensors"),
        "gradients": str(folder / "gradients.safetensors"),
        "importance": importance,
        "target": handed.target,
        "tolerance": TOLERANCE / 2,
        "out": str(folder),
    }
    (folder / "request.json").write_text(json.dumps(request, default=str))
    worker = Path(__file__).with_name("pruning_worker.py")
    # -P: the worker's folder is not on its path, where this file would be found in place of the library of its name.
    command = [str(python), "-P", "-W", "ignore", str(worker), str(folder / "request.json")]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise IsthmusError(f"torch-pruning: {lines[-1] if lines else 'failed without a word'}")
    answer = json.loads((folder / "settings.json").read_text())
    return list(answer["settings"])


def rebuild(
    handed: Handed, tensors: Mapping[str, torch.Tensor], setting: Mapping[str, Any], sites: Sequence[Site]
) -> tuple[Network, Kept]:
    """Return the network that Torch-Pruning left, and the units of the original's width that stay in it.

    Raises
    ------
    IsthmusError
        If it does not compute what it computed there.
    """
    model: Any = copy.deepcopy(handed.network.model)
    check = tensors["check"]
    weights = {name: tensor for name, tensor in tensors.items() if name != "check"}
    before = dict(model.named_parameters())
    shapes = {name: list(tensor.shape) for name, tensor in weights.items() if tensor.shape != before[name].shape}
    size = int(setting["head_size"])
    attributes = {
        f"encoder.layer.{index}.attention.self": {"num_attention_heads": heads, "all_head_size": heads * size}
        for index, heads in enumerate(setting["heads"])
    }
    description = {"version": 1, "layers": None, "shapes": shapes, "attributes": attributes}
    apply_narrowing(model, description, type(model).__name__)
    model.load_state_dict(weights, strict=False)
    ids = torch.arange(check.shape[1])[None]
    with torch.inference_mode():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    if not torch.allclose(output.last_hidden_state, check, atol=1e-4):
        raise IsthmusError(f"torch-pruning {setting['name']}: gives other outputs here than where it was pruned")
    kept = dict(handed.kept)
    units = next(site.units for site in sites if site.name == WIDTH)
    table = "embeddings.word_embeddings.weight"
    if weights[table].shape[1] < units:
        columns = {column.numpy().tobytes(): place for place, column in enumerate(before[table].detach().T)}
        kept[WIDTH] = tuple(columns[column.numpy().tobytes()] for column in weights[table].T)
    return handed.network.with_model(model.eval()), kept


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
    python = environment(say)
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
