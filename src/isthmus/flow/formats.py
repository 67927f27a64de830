"""Formats: what a network is in every engine and precision that runs here, and which one suits which use."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.cost.latency import Latency
from isthmus.errors import BadInput, unknown
from isthmus.examples import Example
from isthmus.export.bench import spread
from isthmus.export.engines import ENGINES, engine_batches, export_network, load_runner, runner_embed
from isthmus.export.quantized import CALIBRATED, FLOAT, PRECISIONS, check_precision, export_quantized
from isthmus.export.timing import time_exported
from isthmus.flow.suiting import check_suits
from isthmus.flow.verifying import bytes_on_disk, check_labels
from isthmus.network import Network, embed
from isthmus.progress import Progress, silent
from isthmus.storage.rounding import rounded_inputs
from isthmus.tasks import Task, evaluate
from isthmus.tasks.divergence import divergence
from isthmus.tasks.task import LIKENESS

USES: Mapping[str, tuple[int, int]] = {"single-stream": (1, 24), "batched": (32, 6)}
"""What a network may be used for: examples at once, and how many such batches are timed."""
KEEP = 0.99
COMPARED = 512
"""Held-out examples whose outputs are compared."""


@dataclass(frozen=True)
class Format:
    """An engine and what it computes in."""

    engine: str
    precision: str

    @property
    def name(self) -> str:
        """What tables and options call it."""
        return f"{self.engine}:{self.precision}"


FORMATS = tuple(Format(engine, precision) for engine in ENGINES for precision in PRECISIONS[engine])


@dataclass(frozen=True)
class FormatRow:
    """A network in a format, measured.

    Parameters
    ----------
    format : Format
    bytes : int
        Of the engine's files.
    metric : float
        The task's, of what the engine puts out; ``ci95`` is its interval, ``relative`` its share of the network's own.
    similarity : float
        Mean cosine of outputs and the network's own.
    nats : float
        Divergence from the network's own outputs.
    latency : mapping of str to Latency
        By use, of one batch.
    """

    format: Format
    bytes: int
    metric: float
    ci95: tuple[float, float]
    relative: float
    similarity: float
    nats: float
    latency: Mapping[str, Latency]


@dataclass(frozen=True)
class FormatTable:
    """All formats of a network side by side.

    Parameters
    ----------
    network, task, metric_name : str
    metric, bytes : float, int
        Of the network as it is, run by PyTorch in float32, and of its weight file.
    keep : float
        The share of that metric which a format that is recommended keeps.
    rows : tuple of FormatRow
    recommended : mapping of str to str or None
        By use, the format; None where none keeps so much.
    left : mapping of str to str
        Formats that do not run here, and why.
    notes : tuple of str
    """

    network: str
    task: str
    metric_name: str
    metric: float
    bytes: int
    keep: float
    rows: tuple[FormatRow, ...]
    recommended: Mapping[str, str | None]
    left: Mapping[str, str]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the table as plain data."""
        rows = [{"name": row.format.name, **asdict(row)} for row in self.rows]
        uses = {use: {"batch": batch} for use, (batch, _) in USES.items()}
        return {**asdict(self), "uses": uses, "rows": rows, "notes": list(self.notes)}


def chosen_formats(spec: str) -> tuple[Format, ...]:
    """Return the formats that a string such as ``openvino:w8a8,onnxruntime:int8`` names; ``all`` names all.

    Raises
    ------
    BadInput
        If one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in spec.split(",") if name.strip()))
    known = {one.name: one for one in FORMATS}
    if names == ["all"]:
        return FORMATS
    if not names:
        raise BadInput(f"no formats; give some of {', '.join(known)}, or all")
    for name in names:
        if name not in known:
            raise unknown("format", name, known)
    return tuple(known[name] for name in names)


def recommend(rows: Sequence[FormatRow], use: str, keep: float = KEEP) -> str | None:
    """Return the format for a use: of those that keep enough, the fastest; where times do not differ, the smallest.

    Times differ where the quartiles of one lie outside those of the other.
    """
    held = [row for row in rows if row.relative >= keep]
    if not held:
        return None
    fastest = min(held, key=lambda row: row.latency[use].median_ms)
    alike = [row for row in held if row.latency[use].low_ms <= fastest.latency[use].high_ms]
    return min(alike, key=lambda row: (row.bytes, row.latency[use].median_ms)).format.name


def measure_formats(
    network: Network,
    task: Task,
    *,
    formats: str = "all",
    keep: float = KEEP,
    rounds: int = 5,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> FormatTable:
    """Export a network in every format, measure each on what the task holds out, and time all in one interleaved run.

    Parameters
    ----------
    formats : str
        Names such as ``openvino:int8``, parted by commas; with ``all`` those that do not run here are left out with
        the reason.
    keep : float
        The share of the network's own metric which a format that is recommended keeps.
    rounds : int
        How often each batch is timed.
    threads : int, optional
        Of the engines; all cores when None.

    Raises
    ------
    BadInput
        If a format is unknown or, asked for by name, does not run here; ``keep`` is no share; or the network does not
        read what the task holds.
    """
    wanted = chosen_formats(formats)
    if not 0 < keep <= 1:
        raise BadInput(f"keep {keep}: is no share; give for example 0.99")
    notes = check_suits(network, task)
    if network.pooling == "logits":
        check_labels(network, task)
    left = {one.name: reason for one in wanted if (reason := _why_not(one, network, task))}
    if left and formats != "all":
        raise BadInput(f"format {next(iter(left))}: {next(iter(left.values()))}")
    chosen = tuple(one for one in wanted if one.name not in left)
    if not chosen:
        raise BadInput(f"no format runs here: {'; '.join(left.values())}")
    with tempfile.TemporaryDirectory(prefix="isthmus-formats-") as folder:
        files = _export(network, task, chosen, Path(folder), progress)
        measured = _qualities(network, task, files, seed, progress)
        timed = _latencies(network, task, files, rounds, threads, progress)
        sizes = {one: sum(file.stat().st_size for file in path.parent.iterdir()) for one, path in files.items()}
    own, found = measured
    rows = tuple(
        FormatRow(
            format=one,
            bytes=sizes[one],
            relative=found[one]["metric"] / own if own else float("nan"),
            latency={use: times[one.name] for use, times in timed.items()},
            **found[one],
        )
        for one in chosen
    )
    recommended = {use: recommend(rows, use, keep) for use in USES}
    return FormatTable(
        network.name, task.name, task.metric_name, own, bytes_on_disk(network), keep, rows, recommended, left, notes
    )


def _why_not(one: Format, network: Network, task: Task) -> str | None:
    try:
        check_precision(one.engine, one.precision)
    except BadInput as error:
        return str(error)
    if one.precision != FLOAT and rounded_inputs(network.model):
        return f"{network.name} rounds its activations itself; it runs in {FLOAT}"
    if one.precision == CALIBRATED and not task.train:
        return f"{task.name} has nothing to calibrate activations on; give a folder with train and dev files"
    return None


def _export(
    network: Network, task: Task, formats: Sequence[Format], folder: Path, progress: Progress
) -> dict[Format, Path]:
    whole: dict[str, Path] = {}
    files = {}
    for step, one in enumerate(formats):
        progress("export", step, len(formats), one.name)
        if one.engine not in whole:
            whole[one.engine] = export_network(network, one.engine, folder / one.engine / FLOAT)
        if one.precision == FLOAT:
            files[one] = whole[one.engine]
        else:
            files[one] = export_quantized(
                network, one.engine, one.precision, task.train, folder / one.engine / one.precision,
                whole=whole[one.engine],
            )  # fmt: skip
    progress("export", len(formats), len(formats))
    return files


def _qualities(
    network: Network, task: Task, files: Mapping[Format, Path], seed: int, progress: Progress
) -> tuple[float, dict[Format, dict[str, Any]]]:
    """Return the network's own metric, and of each format metric, interval, similarity and divergence."""
    import torch

    logits = network.pooling == "logits"
    compared = spread(task.held_out.passages, 1, COMPARED)

    def plain(examples: Sequence[Example]) -> Any:
        return embed(network, examples, batch_size=64)

    total = len(files) + 1
    progress("quality", 0, total, network.name)
    own = evaluate(plain, task, logits=logits, seed=seed)
    reference = plain(task.held_out.examples) if task.metric_name == LIKENESS else None
    outputs = plain(compared)
    found = {}
    for step, (one, path) in enumerate(files.items(), 1):
        progress("quality", step, total, one.name)
        run = runner_embed(network, load_runner(one.engine, path))
        metric = evaluate(run, task, reference, logits=logits, seed=seed)
        theirs = run(compared)
        nats = float(divergence(torch.from_numpy(theirs), torch.from_numpy(outputs), network.pooling))
        found[one] = {
            "metric": metric.value,
            "ci95": metric.ci95,
            "similarity": mean_cosine(theirs, outputs),
            "nats": max(nats, 0.0),
        }
    progress("quality", total, total)
    return own.value, found


def mean_cosine(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Return the mean over rows of the cosine similarity of two arrays of shape ``(rows, width)``."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(1) / np.maximum(norms, 1e-12)).mean())


def _latencies(
    network: Network,
    task: Task,
    files: Mapping[Format, Path],
    rounds: int,
    threads: int | None,
    progress: Progress,
) -> dict[str, dict[str, Latency]]:
    paths = {one.name: path for one, path in files.items()}
    engines = {one.name: one.engine for one in files}
    timed = {}
    for use, (batch, most) in USES.items():
        batches = engine_batches(network, spread(task.held_out.passages, batch, most), batch)
        timed[use] = time_exported(
            paths,
            batches,
            engine=engines,
            rounds=rounds,
            threads=threads,
            progress=lambda done, of, use=use: progress(f"latency, {use}", done, of),  # type: ignore[misc]
        )
    return timed
