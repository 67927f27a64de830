"""Torch-Pruning as a peer: its environment, what is handed to it, and the networks that come back."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from benchmarks.environments import environment
from benchmarks.pruning_networks import KINDS, tensors_of
from isthmus.errors import IsthmusError
from isthmus.examples import Example
from isthmus.network import Network, encode, outputs
from isthmus.storage.narrowing import apply_narrowing

VERSION = "1.6.1"
ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-bench"
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "pydantic")


def torch_pruning(say: Callable[[str], None] = print) -> Path:
    """Return the Python of the environment that has Torch-Pruning, with our versions of all else."""
    return environment(VENV, [f"torch-pruning=={VERSION}", *PACKAGES], constrained=True, say=say)


@dataclass(frozen=True)
class Handed:
    """What Torch-Pruning is given.

    Parameters
    ----------
    network : Network
    kind : str
        A key of `KINDS`.
    target : int
        The cost to reach, in the currency of the kind.
    tolerance : float
        How far below it a network may end, as a share.
    """

    network: Network
    kind: str
    target: int
    tolerance: float


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
    save_file(tensors_of(model), folder / "in.safetensors")
    if gradients:
        save_file(dict(gradients), folder / "gradients.safetensors")
    config = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    request = {
        "kind": handed.kind,
        "config": config,
        "weights": str(folder / "in.safetensors"),
        "gradients": str(folder / "gradients.safetensors"),
        "importance": importance,
        "target": handed.target,
        "tolerance": handed.tolerance,
        "out": str(folder),
    }
    (folder / "request.json").write_text(json.dumps(request, default=str))
    worker = Path(__file__).with_name("pruning_worker.py")
    # -P: the worker's folder is not on its path, where a file here would be found in place of the library of its name.
    command = [str(python), "-P", "-W", "ignore", str(worker), str(folder / "request.json")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise IsthmusError(f"torch-pruning: {lines[-1] if lines else 'failed without a word'}")
    answer = json.loads((folder / "settings.json").read_text())
    return list(answer["settings"])


def rebuild(handed: Handed, folder: Path, setting: Mapping[str, Any]) -> Network:
    """Return the network that Torch-Pruning left.

    Raises
    ------
    IsthmusError
        If it does not compute what it computed there.
    """
    tensors = load_file(folder / f"{setting['name']}.safetensors")
    model: Any = copy.deepcopy(handed.network.model)
    kind, check = KINDS[handed.kind], tensors.pop("check")
    before = tensors_of(model)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor.shape != before[name].shape}
    changed = {path: dict(values) for path, values in setting["attributes"].items()}
    description = {"version": 1, "layers": None, "shapes": shapes, "attributes": changed}
    apply_narrowing(model, description, type(model).__name__)
    model.load_state_dict(tensors, strict=False)
    with torch.inference_mode():
        output = kind.output(model.eval()(**kind.example(model.config.to_dict())))
    if not torch.allclose(output, check, atol=1e-4):
        raise IsthmusError(f"torch-pruning {setting['name']}: gives other outputs here than where it was pruned")
    return handed.network.with_model(model)


def label_gradients(network: Network, rows: Sequence[tuple[Example, int]]) -> dict[str, torch.Tensor]:
    """Return the gradient of every weight of the labels' cross-entropy over labelled images."""
    model = copy.deepcopy(network.model).requires_grad_(True)
    for start in range(0, len(rows), 64):
        images, labels = zip(*rows[start : start + 64], strict=True)
        logits = outputs(replace(network, model=model), encode(network, images))
        F.cross_entropy(logits, torch.tensor(labels), reduction="sum").div(len(rows)).backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
