"""Latency of exported networks, timed in a process of its own (``python -m isthmus.export.timing``).

The engine and its copies of the weights then never lie beside a network that is being trained, and what runs in the
timed process is what runs where a network is in use: the engine alone.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from isthmus.cost.latency import Batch, Latency, measure_latency
from isthmus.errors import IsthmusError
from isthmus.export.engines import find_engine, load_runner

if TYPE_CHECKING:
    import numpy as np

JOB_FILE, BATCHES_FILE = "job.json", "batches.safetensors"


def time_exported(
    paths: Mapping[str, Path],
    batches: Sequence[Batch] | Mapping[str, Sequence[Batch]],
    *,
    engine: str | Mapping[str, str],
    rounds: int = 7,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Latency]:
    """Time exported networks turn by turn, as ``measure_latency`` does, in a fresh process.

    Parameters
    ----------
    paths : mapping of str to Path
        By network, the exported file.
    batches : sequence of batches, or a mapping from network to one
        Arrays by input name; as many for each network.
    engine : str or mapping of str to str
        What runs them all, or by network what runs each.
    rounds : int
        How often every batch is timed.
    threads : int, optional
        Threads of the engine; all cores when None.
    progress : callable, optional
        Called with the rounds done and the rounds in all.

    Raises
    ------
    BadInput
        If the engine is unknown or not installed.
    IsthmusError
        If the process fails; with its last line.
    """
    engines = {name: engine if isinstance(engine, str) else engine[name] for name in paths}
    for one in dict.fromkeys([engine] if isinstance(engine, str) else engines.values()):
        find_engine(one)
    with tempfile.TemporaryDirectory(prefix="isthmus-timing-") as folder:
        _write_job(Path(folder), paths, batches, engines, rounds, threads)
        with (Path(folder) / "errors").open("w+") as errors:
            command = [sys.executable, "-W", "ignore", "-m", "isthmus.export.timing", folder]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                result = _follow(process, progress)
            finally:
                process.kill()
                process.wait()
            if result is None:
                raise IsthmusError(f"latency: the process that ran the exported networks failed: {_last(errors)}")
    return {name: Latency(**figures) for name, figures in result.items()}


def _write_job(
    folder: Path,
    paths: Mapping[str, Path],
    batches: Sequence[Batch] | Mapping[str, Sequence[Batch]],
    engines: Mapping[str, str],
    rounds: int,
    threads: int | None,
) -> None:
    from safetensors.numpy import save_file

    # Batches that every network runs are written once, under no network's name.
    given = dict(batches) if isinstance(batches, Mapping) else {"": batches}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    listed: dict[str, list[dict[str, str]]] = {}
    for name, own in given.items():
        listed[name] = []
        for batch in own:
            keys = {part: f"t{len(arrays) + index}" for index, part in enumerate(batch)}
            arrays.update({key: batch[part] for part, key in keys.items()})
            listed[name].append(keys)
    save_file(arrays, folder / BATCHES_FILE)
    job = {
        "engines": dict(engines),
        "threads": threads,
        "rounds": rounds,
        "paths": {name: str(path) for name, path in paths.items()},
        "batches": listed,
    }
    (folder / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")


def _follow(process: subprocess.Popen[str], progress: Callable[[int, int], None] | None) -> dict[str, Any] | None:
    """Read what the process says, line by line, until it ends; return its result."""
    result: dict[str, Any] | None = None
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("{"):  # an engine's own chatter
            continue
        said = json.loads(line)
        if "result" in said:
            result = said["result"]
        elif progress is not None:
            progress(said["done"], said["of"])
    return result if process.wait() == 0 else None


def _last(errors: IO[str]) -> str:
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return lines[-1] if lines else "without a word"


def main(folder: str) -> None:
    """Carry out the job in a folder; write progress and the result as lines of JSON."""
    from safetensors.numpy import load_file

    job = json.loads((Path(folder) / JOB_FILE).read_text(encoding="utf-8"))
    for engine in dict.fromkeys(job["engines"].values()):
        for package in find_engine(engine).runtime:
            importlib.import_module(package)
    arrays = load_file(Path(folder) / BATCHES_FILE)
    batches = {
        name: [{part: arrays[key] for part, key in keys.items()} for keys in own]
        for name, own in job["batches"].items()
    }
    runners = {name: load_runner(job["engines"][name], path, job["threads"]) for name, path in job["paths"].items()}

    def say(**what: Any) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    timed = measure_latency(
        runners,
        batches.get("", batches),
        rounds=job["rounds"],
        progress=lambda done, of: say(done=done, of=of),
    )
    say(result={name: asdict(latency) for name, latency in timed.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
