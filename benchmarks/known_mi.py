"""The default estimator of information beside scikit-learn, NPEET and torch_mist, where the truth is known.

Cases are the 40 tasks of the public benchmark ``benchmark-mi`` (Czyz et al. 2023) and 30 of our own with a closed form
or a quadrature (`known_mi_cases`). Every tool gets the same samples. scikit-learn takes one-dimensional sides only (the
regression one) or a label, and NPEET's neighbours take many minutes in many dimensions: each is compared with ours on
the cases that it took. Seconds are processor time of one core, for nothing else may be assumed idle.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from claims.common import Ledger, Outcome, Say
from claims.tables import markdown_table

from benchmarks.environments import environment, own_torch
from benchmarks.known_mi_cases import Pair, cases, half
from isthmus.errors import IsthmusError
from isthmus.flow.record import machine
from isthmus.information import mutual_information

PACKAGES = {
    "benchmark-mi": "0.1.3",
    "jax": "0.4.33",
    "jaxlib": "0.4.33",
    "npeet_plus": "0.2.0",
    "torch_mist": "0.2.17",
}
"""benchmark-mi does not import with a later JAX; NPEET itself is not on PyPI, npeet_plus is its continuation there."""
ROOT = Path(__file__).resolve().parents[1]
VENV, WORK = ROOT / ".venv-known-mi", ROOT / "build" / "benchmarks" / "known_mi"
OURS, SKLEARN, PEERS = "isthmus", "scikit-learn", ("npeet", "torch_mist")
TOOLS = (OURS, SKLEARN, *PEERS)
NEIGHBOURS = {2_000: 200, 10_000: 12}
"""Dimensions of both sides together up to which NPEET is run at so many samples."""
ITERATIONS = 1000
"""Of torch_mist's training, at the most; it stops early by itself."""
COVERED = 0.9
NOTES = {
    "scikit-learn": "scikit-learn takes one-dimensional sides and labels only.",
    "npeet": f"NPEET (`npeet_plus`) was run up to {NEIGHBOURS[10_000]} dimensions of both sides together at 10,000 "
    "samples.",
    "torch_mist": "torch_mist with its default, SMILE, two hidden layers of 128, at most "
    f"{ITERATIONS} iterations and its own early stopping.",
}


@dataclass(frozen=True)
class Drawn:
    """Samples of one case, in a file."""

    name: str
    nats: float
    samples: int
    path: Path

    def pair(self) -> Pair:
        """Return both sides; labels are integers of shape ``(samples,)``."""
        data = np.load(self.path)
        sides = [data["x"], data["y"]]
        x, y = (side[:, 0].astype(np.int64) if label else side for side, label in zip(sides, self.labels, strict=True))
        return x, y

    @property
    def labels(self) -> tuple[bool, bool]:
        """Which sides are labels."""
        data = np.load(self.path)
        return bool(data["labels"][0]), bool(data["labels"][1])

    @property
    def kinds(self) -> str:
        """Kinds of the sides, as in ``continuous/discrete``."""
        return "/".join("discrete" if label else "continuous" for label in self.labels)


def worker(python: Path, verb: str, request: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that the worker prints.

    Raises
    ------
    IsthmusError
        If it fails.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(json.dumps(request))
        command = [str(python), "-P", "-W", "ignore", str(Path(__file__).with_name("known_mi_worker.py")), verb]
        with (Path(folder) / "errors").open("w+") as errors:
            process = subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                assert process.stdout is not None
                yield from process.stdout
            finally:
                if process.poll() is None and sys.exc_info()[0] is not None:
                    process.kill()
                code = process.wait()
            if code:
                errors.seek(0)
                lines = errors.read().strip().splitlines()
                raise IsthmusError(f"known_mi: {lines[-1] if lines else 'the worker failed without a word'}")


def draw(python: Path, samples: int, seed: int, folder: Path) -> list[Drawn]:
    """Return the samples of all cases, written once."""
    folder = folder / f"{samples}-{seed}"
    listing = folder / "cases.json"
    if not listing.exists():
        folder.mkdir(parents=True, exist_ok=True)
        list(worker(python, "draw", {"samples": samples, "seed": seed, "out": str(folder)}))
        found = json.loads((folder / "answer.json").read_text())
        for one in found:
            data = dict(np.load(folder / one["file"]))
            np.savez(folder / one["file"], **data, labels=np.zeros(2, dtype=bool))
        for case in cases():
            x, y = case.samples(samples, seed)
            file = f"own-{zlib.crc32(case.name.encode())}.npz"
            labels = np.array([x.ndim == 1, y.ndim == 1])
            flat = [side.reshape(samples, -1).astype(np.float64) for side in (x, y)]
            np.savez(folder / file, x=flat[0], y=flat[1], labels=labels)
            found.append({"name": case.name, "nats": case.nats, "file": file})
        listing.write_text(json.dumps(found))
    return [Drawn(one["name"], one["nats"], samples, folder / one["file"]) for one in json.loads(listing.read_text())]


def ours(drawn: Drawn, seed: int) -> Outcome:
    """Return what our default says, without permutations for those estimators that would run again for them."""
    x, y = drawn.pair()
    started = time.process_time()
    found = mutual_information(x, y, permutations=0, seed=seed)
    seconds = time.process_time() - started
    interval = None if found.interval is None else list(found.interval)
    return {"nats": found.nats, "interval": interval, "not_estimable": found.not_estimable, "seconds": seconds}


def sklearn(drawn: Drawn, seed: int) -> Outcome | None:
    """Return what scikit-learn says, or None where it takes no such sides."""
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    x, y = drawn.pair()
    if x.ndim == 1 or x.shape[1] > 1 or (y.ndim == 2 and y.shape[1] > 1):
        return None
    started = time.process_time()
    if y.ndim == 1:
        nats = mutual_info_classif(x, y, random_state=seed)[0]
    else:
        nats = mutual_info_regression(x, y[:, 0], random_state=seed)[0]
    return {"nats": float(nats), "seconds": time.process_time() - started}


def conclude(points: Sequence[Outcome]) -> dict[str, Any]:
    """Return for each number of samples: ours by halves, and each peer beside ours on the cases that it took."""
    found: dict[str, Any] = {}
    for samples in sorted({point["samples"] for point in points}):
        here = [point for point in points if point["samples"] == samples]
        own = {point["case"]: point for point in here if point["tool"] == OURS}
        halves = {
            part: _ours([p for p in own.values() if part in (p["half"], "all")])
            for part in ("tuning", "reported", "all")
        }
        peers = {}
        for tool in TOOLS[1:]:
            pairs = [
                (point, own[point["case"]])
                for point in here
                if point["tool"] == tool and point.get("nats") is not None
                if own.get(point["case"], {}).get("nats") is not None
            ]
            if pairs:
                errors = np.array([[abs(one["nats"] - one["truth"]) for one in pair] for pair in pairs])
                peers[tool] = {
                    "cases": len(pairs),
                    "mean_error": float(errors[:, 0].mean()),
                    "our_mean_error": float(errors[:, 1].mean()),
                    "seconds": float(np.mean([pair[0]["seconds"] for pair in pairs])),
                }
        found[str(samples)] = {"ours": halves, "peers": peers}
    return {"summary": found}


def _ours(points: Sequence[Outcome]) -> dict[str, Any]:
    given = [point for point in points if point["nats"] is not None]
    if not given:
        return {"cases": len(points), "estimated": 0}
    inside = [point["interval"][0] <= point["truth"] <= point["interval"][1] for point in given]
    widths = [point["interval"][1] - point["interval"][0] for point in given]
    return {
        "cases": len(points),
        "estimated": len(given),
        "mean_error": float(np.mean([abs(point["nats"] - point["truth"]) for point in given])),
        "coverage": float(np.mean(inside)),
        "width": float(np.mean(widths)),
        "median_width": float(np.median(widths)),
        "seconds": float(np.mean([point["seconds"] for point in points])),
        "most_seconds": float(np.max([point["seconds"] for point in points])),
    }


def run(
    out: Path, *, samples: Sequence[int], seed: int, tools: Sequence[str] = TOOLS, say: Say = print
) -> dict[str, Any]:
    """Run the comparison, going on from what ``out`` holds."""
    wanted = [f"{name}=={number}" for name, number in PACKAGES.items()]
    python = environment(VENV, [*wanted, own_torch()], say=say)
    record = {"seed": seed, "packages": {**PACKAGES, "scikit-learn": version("scikit-learn")}, "machine": machine()}
    ledger = Ledger(out, {"benchmark": "known_mi", "record": record}, conclude)
    for count in samples:
        drawn = draw(python, count, seed, WORK)
        done = {(point["tool"], point["case"], point["samples"]) for point in ledger.outcomes}
        for tool, measure in ((OURS, ours), (SKLEARN, sklearn)):
            for case in drawn if tool in tools else ():
                if (tool, case.name, count) in done or (answer := measure(case, seed)) is None:
                    continue
                ledger.add(_point(tool, case, answer))
                say(f"{count} {tool} {case.name}: {answer['nats']}, truth {case.nats:.3f}")
        asked = [
            {"tool": tool, "case": case.name, "samples": count, "kinds": case.kinds, "file": str(case.path)}
            for tool in PEERS
            if tool in tools
            for case in drawn
            if (tool, case.name, count) not in done and _takes(tool, case)
        ]
        names = {case.name: case for case in drawn}
        if asked:
            for line in worker(python, "peers", {"points": [{**one, "iterations": ITERATIONS} for one in asked]}):
                if line.startswith("ANSWER "):
                    answer = json.loads(line.removeprefix("ANSWER "))
                    ledger.add(_point(answer["tool"], names[answer["case"]], answer))
                    say(f"{count} {answer['tool']} {answer['case']}: {answer.get('nats', answer.get('failed'))}")
    ledger.write()
    return conclude(ledger.outcomes)


def _takes(tool: str, case: Drawn) -> bool:
    if tool != "npeet":
        return True
    data = np.load(case.path)
    return int(data["x"].shape[1] + data["y"].shape[1]) <= NEIGHBOURS.get(case.samples, 12)


def _point(tool: str, case: Drawn, answer: Mapping[str, Any]) -> Outcome:
    kept = {key: value for key, value in answer.items() if key not in ("tool", "case", "samples")}
    if kept.get("nats") is not None and not np.isfinite(kept["nats"]):
        kept = {**kept, "nats": None, "failed": "not a finite number"}
    return {
        "tool": tool,
        "case": case.name,
        "half": half(case.name),
        "samples": case.samples,
        "truth": case.nats,
        **kept,
    }


def section(result: Mapping[str, Any]) -> list[str]:
    """Return the part of docs/benchmarks.md."""
    rows, beside = [], []
    for samples, found in result["summary"].items():
        for part, one in found["ours"].items():
            if one.get("estimated"):
                rows.append(
                    [
                        f"{int(samples):,}",
                        part,
                        f"{one['estimated']} of {one['cases']}",
                        f"{one['mean_error']:.3f}",
                        f"{one['coverage']:.0%}",
                        f"{one['width']:.3f}",
                        f"{one['median_width']:.3f}",
                        f"{one['seconds']:.1f}",
                    ]
                )
        for tool, one in found["peers"].items():
            beside.append(
                [
                    f"{int(samples):,}",
                    tool,
                    str(one["cases"]),
                    f"{one['mean_error']:.3f}",
                    f"{one['our_mean_error']:.3f}",
                    f"{one['seconds']:.1f}",
                ]
            )
    ran = [tool for tool in TOOLS[1:] if any(tool in found["peers"] for found in result["summary"].values())]
    heads = ["samples", "cases", "estimated", "mean error", "coverage", "mean width", "median width", "seconds"]
    return [
        "## Known mutual information",
        "",
        markdown_table(heads, rows),
        "",
        "`isthmus.information.mutual_information` with its default, in nats, on the tasks of `benchmark-mi` and on "
        f"analytic cases; 95 % intervals, which are to hold the truth in {COVERED:.0%} of the cases. The default was "
        "set up looking at the half `tuning` only (a hash of the name decides). Cases that differ only by a map of "
        "single coordinates get the same answer and lie in both halves. Seconds are of one core.",
        "",
        markdown_table(["samples", "tool", "cases", "its mean error", "ours there", "its seconds"], beside),
        "",
        " ".join(["The same samples.", *(NOTES[tool] for tool in ran)]),
        "",
    ]
