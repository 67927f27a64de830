"""The public benchmark of known mutual information, and the peers: runs in an environment of its own.

``python known_mi_worker.py draw REQUEST.json``, where the request names the samples, the seed and the folder; every
task of ``benchmark-mi`` gives a file of ``x`` and ``y``, and ``answer.json`` their names and nats.
``python known_mi_worker.py peers REQUEST.json`` runs NPEET and torch_mist on files of samples and prints one line of
JSON for each answer as soon as it is there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def draw(asked: Mapping[str, Any]) -> None:
    """Write the samples of every task, and what each is called and what it carries."""
    import bmi  # type: ignore[import-not-found]  # lives in an environment of its own

    made, out = [], Path(asked["out"])
    for place, (name, task) in enumerate(sorted(bmi.benchmark.BENCHMARK_TASKS.items())):
        x, y = task.sample(int(asked["samples"]), seed=int(asked["seed"]))
        np.savez(out / f"{place}.npz", x=np.asarray(x, dtype=np.float64), y=np.asarray(y, dtype=np.float64))
        made.append({"name": name, "nats": float(task.mutual_information), "file": f"{place}.npz"})
    (out / "answer.json").write_text(json.dumps(made))


def npeet(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], asked: Mapping[str, Any]) -> float:
    """Return what NPEET says, with its own settings: 3 neighbours; labels by its mixed estimator."""
    from npeet_plus import mi, micd, midd  # type: ignore[import-not-found]  # as above

    scale = np.where(x.std(0) > 0, x.std(0), 1.0)
    if asked["kinds"] == "discrete/discrete":
        return float(midd(x[:, 0].astype(int).tolist(), y[:, 0].astype(int).tolist(), base=np.e))
    if asked["kinds"] == "continuous/discrete":
        return float(micd((x / scale).tolist(), y.astype(int).tolist(), base=np.e))
    return float(mi(x / scale, y / y.std(0), base=np.e))


def torch_mist(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], asked: Mapping[str, Any]) -> float:
    """Return what torch_mist says on a fifth put aside: SMILE, its default, on standardised samples."""
    import torch
    from torch_mist import estimate_mi  # type: ignore[import-not-found]  # as above

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = [
        torch.nn.functional.one_hot(torch.from_numpy(side[:, 0]).long()).float()
        if kind == "discrete"
        else torch.from_numpy((side - side.mean(0)) / side.std(0)).float()
        for side, kind in zip((x, y), asked["kinds"].split("/"), strict=True)
    ]
    cut = 4 * len(x) // 5
    fit, held = ({"x": sides[0][part], "y": sides[1][part]} for part in (slice(cut), slice(cut, None)))
    found = estimate_mi(
        data=fit,
        test_data=held,
        estimator="smile",
        neg_samples=16,
        hidden_dims=[128, 128],
        max_iterations=int(asked["iterations"]),
        batch_size=128,
        verbose=False,
        logger=False,
    )
    return float(found[0] if isinstance(found, tuple) else found)


PEERS = {"npeet": npeet, "torch_mist": torch_mist}


def peers(asked: Mapping[str, Any]) -> None:
    """Run what is asked for and print the answers as they come; what fails says why."""
    for one in asked["points"]:
        data = np.load(one["file"])
        started = time.process_time()
        try:
            answer: dict[str, Any] = {"nats": PEERS[one["tool"]](data["x"], data["y"], one)}
        except Exception as error:  # whatever another library may raise is its answer
            answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        seconds = time.process_time() - started
        line = {"tool": one["tool"], "case": one["case"], "samples": one["samples"], "seconds": seconds, **answer}
        print("ANSWER " + json.dumps(line), flush=True)


if __name__ == "__main__":
    {"draw": draw, "peers": peers}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
