"""What Isthmus reaches: its own command run as a user would, held against written targets."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims.common import Say
from claims.data import encoder_task, why_not

from isthmus.errors import BadInput, IsthmusError
from isthmus.examples import texts_of
from isthmus.flow.record import machine, versions
from isthmus.storage.files import write_atomic
from isthmus.tasks.data import data_folder

NEEDS = ("stsb/train.csv", "stsb/dev.csv", "sst2/train.tsv")
ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "benchmarks" / "reach"
EFFORTS = ("full", "fast", "faster", "none")


@dataclass(frozen=True)
class Goal:
    """A budget, the least quality relative to the original that it is to keep, and options of the command."""

    budget: str
    quality: float
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What a user types."""
        return " ".join([self.budget, *self.options])


GOALS = {
    "half": Goal("params=50%", 0.985),
    "quarter": Goal("params=25%", 0.95),
    "tenth": Goal("params=10%", 0.85),
    "latency": Goal("latency=50%", 0.975),
    "12mb": Goal("bytes=12MB", 0.998),
    "8mb": Goal("bytes=8MB", 0.995),
    "5mb": Goal("bytes=5MB", 0.985),
    "3mb": Goal("bytes=3MB", 0.965),
    "quarter-latency": Goal("latency=25%", 0.97, ("--precision", "w8a8")),
    "latency-18": Goal("latency=18%", 0.97, ("--precision", "w8a8")),
}
LATENCIES = {"latency": 0.5, "quarter-latency": 0.25, "latency-18": 0.18}
INTEGERS = ("quarter-latency", "latency-18")
TIMES_WHOLE = 2.0
"""Where the engine computes in integers: so many times as fast as the whole network in them."""
FASTER_SECONDS, FULL_SECONDS, IMPORT_SECONDS = 300.0, 2700.0, 0.3
FASTER_QUALITY, FASTER_BEHIND = 0.96, 0.02
CODED_SECONDS, RECOVERED_SECONDS = 180.0, 3600.0
"""Wall time of ``bytes=12MB`` without training, and of ``bytes=5MB`` with it."""
NETWORKS, SPARE = 4, 10**9
"""Peak memory of narrow: at most this many times the network, and this many bytes."""

# A process starts with the peak of the one that made it, and this one has torch loaded: a small one goes between.
_LAUNCHER = """
import os, subprocess, sys, time
start = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.monotonic() - start, usage.ru_maxrss)
sys.exit(min(abs(os.waitstatus_to_exitcode(status)), 255))
"""

Job = tuple[str, str]
Jobs = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """A target, and what was reached: ``met`` is None where it was not measured."""

    name: str
    target: str
    reached: str
    met: bool | None


def job_name(job: Job) -> str:
    """Return the name of a job: its budget and effort."""
    return "-".join(job)


def jobs_for(budgets: Sequence[str], efforts: Sequence[str]) -> list[Job]:
    """Return every combination, quick ones first.

    Raises
    ------
    BadInput
        If a budget or an effort is unknown.
    """
    for given, known in ((budgets, GOALS), (efforts, EFFORTS)):
        for name in given:
            if name not in known:
                raise BadInput(f"reach: unknown {name!r}; give some of {', '.join(known)}")
    return [(budget, effort) for effort in reversed(EFFORTS) if effort in efforts for budget in budgets]


def run_measured(command: Sequence[str]) -> tuple[float, int]:
    """Run a command to its end and return its wall time in seconds and its peak memory in bytes.

    Raises
    ------
    IsthmusError
        If it fails; with its last line.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", _LAUNCHER, *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise IsthmusError(f"{' '.join(command[1:4])}: {lines[-1] if lines else 'failed without a word'}")
    seconds, peak = done.stdout.split()[-2:]
    # The kernel counts in kibibytes, save on macOS.
    return float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)


def import_seconds() -> float:
    """Return the median wall time of importing isthmus in a fresh interpreter."""
    code = "import time; start = time.perf_counter(); import isthmus; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(7)
    ]
    return statistics.median(times[1:])


def run_job(job: Job, *, model: str, texts: Path, dev: Path, seed: int, limit: str | None) -> dict[str, Any]:
    """Narrow by the command, compare by the command, and return what was measured."""
    budget, effort = job
    out, figures = WORK / job_name(job), WORK / f"{job_name(job)}.json"
    # A job that was stopped begins anew: its time is measured from the start.
    for left in (out, out.with_name(f".{out.name}.stages")):
        shutil.rmtree(left, ignore_errors=True)
    command, goal = str(Path(sys.executable).with_name("isthmus")), GOALS[budget]
    narrow = [command, "narrow", model, "--task", f"text:{texts}", "--to", goal.budget, *goal.options]
    narrow += ["--effort", effort]
    narrow += ["--seed", str(seed), "--quiet", "-o", str(out), *(["--time", limit] if limit else [])]
    seconds, peak = run_measured(narrow)
    beside = [model, str(out)]
    if "--precision" in goal.options:
        beside.append(str(WORK / "whole"))
        shutil.rmtree(WORK / "whole", ignore_errors=True)
        whole = [command, "export", model, "--layout", "openvino", *goal.options, "--task", f"text:{texts}"]
        run_measured([*whole, "-o", beside[-1]])
    run_measured([command, "compare", *beside, "--task", f"sts:{dev}", "--json", str(figures), "--quiet"])
    rows = json.loads(figures.read_text(encoding="utf-8"))
    return {
        "to": goal.label,
        "effort": effort,
        "seed": seed,
        "time": limit,
        "seconds": seconds,
        "peak_bytes": peak,
        "rows": rows,
    }


def _best(jobs: Jobs, budget: str) -> Mapping[str, Any] | None:
    """Return the job of the most thorough effort that was run."""
    return next((jobs[name] for effort in EFFORTS if (name := job_name((budget, effort))) in jobs), None)


def _quality(job: Mapping[str, Any]) -> float:
    return float(job["rows"][1]["relative"])


def quality_targets(jobs: Jobs) -> list[Target]:
    """Return the targets of quality by budget, and those of latency that is truly what was asked."""
    found = []
    for name, goal in GOALS.items():
        job = _best(jobs, name)
        title = f"`{goal.label}`: quality relative to the original"
        if job is None:
            found.append(Target(title, f"≥ {goal.quality:.1%}", "not measured", None))
        else:
            value = _quality(job)
            reached = f"{value:.1%} (`--effort {job['effort']}`)"
            found.append(Target(title, f"≥ {goal.quality:.1%}", reached, value >= goal.quality))
    for name, most in LATENCIES.items():
        job = _best(jobs, name)
        title, target = f"`{GOALS[name].label}`: measured beside the original in OpenVINO", f"≤ {most:.0%}"
        if job is None:
            found.append(Target(title, target, "not measured", None))
            continue
        original, narrowed = (row["latency_ms"] for row in job["rows"][:2])
        share = narrowed / original
        found.append(Target(title, target, f"{share:.1%} ({narrowed:.1f} of {original:.1f} ms)", share <= most))
    # How much faster than float32 integers are by themselves depends on the processor: both budgets are shown.
    return found + [_against_whole(name, jobs) for name in INTEGERS]


def _against_whole(name: str, jobs: Jobs) -> Target:
    """Return the target of speed beside the whole network in the same integers, which NNCF makes of it."""
    job = _best(jobs, name)
    title = f"`{GOALS[name].label}`: times the speed of NNCF's W8A8 of the whole network"
    target = f"≥ {TIMES_WHOLE:g}"
    if job is None or len(job["rows"]) < 3:
        return Target(title, target, "not measured", None)
    narrowed, whole = (row["latency_ms"] for row in job["rows"][1:3])
    reached = f"{whole / narrowed:.2f} ({narrowed:.1f} and {whole:.1f} ms, in one run)"
    return Target(title, target, reached, whole >= TIMES_WHOLE * narrowed)


def cost_targets(jobs: Jobs, importing: float | None) -> list[Target]:
    """Return the targets of time and memory."""
    faster, full = jobs.get("half-faster"), jobs.get("half-full")
    found = []
    target = (
        f"≤ {FASTER_SECONDS / 60:.0f} min, ≥ {FASTER_QUALITY:.0%}, at most {100 * FASTER_BEHIND:g} points under full"
    )
    if faster is None or full is None:
        found.append(Target("`--effort faster`, `params=50%`", target, "not measured", None))
    else:
        behind = _quality(full) - _quality(faster)
        met = faster["seconds"] <= FASTER_SECONDS and _quality(faster) >= FASTER_QUALITY and behind <= FASTER_BEHIND
        reached = f"{faster['seconds'] / 60:.1f} min, {_quality(faster):.1%}, {100 * behind:.1f} points under full"
        found.append(Target("`--effort faster`, `params=50%`", target, reached, met))
    longest = max((job["seconds"] for job in jobs.values() if job["effort"] == "full"), default=None)
    found.append(_at_most("`--effort full`: wall time", longest, FULL_SECONDS, 60, "min"))
    coded, recovered = jobs.get("12mb-none"), _best(jobs, "5mb")
    seconds = coded["seconds"] if coded else None
    found.append(_at_most("`bytes=12MB --effort none`: wall time", seconds, CODED_SECONDS, 60, "min"))
    trained = recovered if recovered and recovered["effort"] != "none" else None
    seconds = trained["seconds"] if trained else None
    found.append(_at_most("`bytes=5MB` with recovery: wall time", seconds, RECOVERED_SECONDS, 60, "min"))
    peak = max((job["peak_bytes"] for job in jobs.values()), default=None)
    bytes_ = max((job["rows"][0]["bytes"] for job in jobs.values()), default=0)
    found.append(_at_most("peak memory of `narrow`", peak, NETWORKS * bytes_ + SPARE, 1e6, "MB"))
    found.append(_at_most("importing `isthmus`", importing, IMPORT_SECONDS, 1, "s"))
    return found


def _at_most(name: str, value: float | None, limit: float, unit: float, word: str) -> Target:
    digits = 2 if limit / unit < 1 else 0
    target = f"≤ {limit / unit:.{digits}f} {word}"
    if value is None:
        return Target(name, target, "not measured", None)
    return Target(name, target, f"{value / unit:.{max(digits, 1)}f} {word}", value <= limit)


def targets(jobs: Jobs, importing: float | None) -> list[Target]:
    """Return every target that this benchmark measures, with what was reached."""
    return [*quality_targets(jobs), *cost_targets(jobs, importing)]


def write_texts(folder: Path, out: Path) -> str:
    """Write the unlabelled texts that recovery may use, one a line, and return the fingerprint of the data."""
    task = encoder_task(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, "".join(f"{' '.join(text.split())}\n" for text in texts_of(task.train, "reach")).encode())
    return task.fingerprint


def run(
    out: Path,
    *,
    model: str,
    budgets: Sequence[str],
    efforts: Sequence[str],
    seed: int = 0,
    limit: str | None = None,
    again: bool = False,
    say: Say = print,
) -> list[Target]:
    """Run the jobs that ``out`` does not have yet (all of them, ``again``) and hold everything against the targets.

    Raises
    ------
    BadInput
        If the data is not on this machine, or a name is unknown.
    """
    jobs = jobs_for(budgets, efforts)
    folder = data_folder()
    missing = why_not(*NEEDS)
    if folder is None or missing:
        raise BadInput(f"reach: skipped, {missing}")
    data = write_texts(folder, WORK / "texts.txt")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    done: dict[str, Any] = dict(found.get("jobs", {}))
    importing = import_seconds()
    for job in jobs:
        name = job_name(job)
        if name in done and not again:
            say(f"{name}: there already")
            continue
        say(f"{name}: narrow, then compare")
        done[name] = run_job(
            job, model=model, texts=WORK / "texts.txt", dev=folder / "stsb" / "dev.csv", seed=seed, limit=limit
        )
        one = done[name]
        say(f"{name}: relative {_quality(one):.4f}, {one['seconds']:.0f} s, peak {one['peak_bytes'] / 1e6:.0f} MB")
        _write(out, done, importing, data)
    _write(out, done, importing, data)
    reached = targets(done, importing)
    for target in reached:
        say(f"{target.name}: {target.target}; {target.reached}")
    return reached


def _write(out: Path, jobs: Mapping[str, Any], importing: float, data: str) -> None:
    result = {
        "benchmark": "reach",
        "record": {"versions": versions(), "machine": machine(), "cores": os.cpu_count(), "data": data},
        "import_seconds": importing,
        "targets": [vars(target) for target in targets(jobs, importing)],
        "jobs": jobs,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())
