"""Networks side by side: what each costs as an exported artifact, timed in one interleaved run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isthmus.cost.examples import described, one_described, one_example
from isthmus.cost.measure import count_parameters, measure_macs
from isthmus.errors import BadInput
from isthmus.export.engines import engine_batches, find_engine
from isthmus.export.peak import measure_peak
from isthmus.export.saved import exported, precision_of
from isthmus.export.timing import time_exported
from isthmus.progress import Progress, silent

if TYPE_CHECKING:
    from isthmus.examples import Example
    from isthmus.network import Network

IMAGE_BATCHES = 4


def bench_networks(
    networks: Sequence[Network],
    examples: Sequence[Example],
    *,
    engine: str = "openvino",
    batch: int = 32,
    rounds: int = 7,
    max_batches: int = 16,
    threads: int | None = None,
    macs_length: int | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Export networks, then time them turn by turn on the same texts or images.

    Parameters
    ----------
    networks : sequence of Network
    examples : sequence of str or of Image
        Real ones; batches are taken in the given order.
    engine : {"openvino", "onnxruntime"}
    batch : int
        Examples in a batch.
    rounds : int
        How often each batch is timed.
    max_batches : int
        How many batches are timed at most, spread evenly over the examples; of images, which are all of one size to a
        network, no more than `IMAGE_BATCHES`.
    threads : int, optional
        Threads of the engine; all cores when None.
    macs_length : int, optional
        Tokens of the sequence whose multiply-accumulates are counted; the first network's mean length when None.
    progress : Progress

    Returns
    -------
    list of dict
        For each network ``name, params, macs`` (of one sequence of ``macs_length`` tokens, or of one image),
        ``latency_ms`` (median of a batch), ``latency_spread`` (its quartiles), ``engine, precision, batch, length``
        (mean tokens of a text that are not padding; 1 of images), ``of`` and ``macs_of`` (this in words) and
        ``peak_bytes``.

    Raises
    ------
    BadInput
        If the engine is unknown or not installed, or there are no examples.
    """
    find_engine(engine)
    if not examples or not networks:
        raise BadInput("bench: no examples to run; give a task with at least one")
    if networks[0].images is not None:
        max_batches = min(max_batches, IMAGE_BATCHES)
    chosen = spread(examples, batch, max_batches)
    keys = [str(index) for index in range(len(networks))]
    steps = 2 * len(networks) + rounds + 1
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as folder:
        paths, batches, peaks, lengths = {}, {}, {}, {}
        for step, (key, network) in enumerate(zip(keys, networks, strict=True)):
            progress("bench", 2 * step, steps, f"export {network.name}")
            paths[key] = exported(network, engine, Path(folder) / key)
            batches[key] = engine_batches(network, chosen, batch)
            lengths[key] = _mean_length(batches[key])
            progress("bench", 2 * step + 1, steps, f"memory of {network.name}")
            peaks[key] = measure_peak(engine, paths[key], batches[key][0], threads)
        done = 2 * len(networks)
        timed = time_exported(
            paths,
            batches,
            engine=engine,
            rounds=rounds,
            threads=threads,
            progress=lambda at, _: progress("bench", done + at, steps, "latency"),
        )
    tokens = macs_length or max(1, round(lengths[keys[0]]))
    return [
        {
            "name": network.name,
            "params": count_parameters(network.model),
            "macs": measure_macs(network.model, one_example(network, tokens)),
            "macs_length": tokens,
            "macs_of": one_described(network, tokens),
            "latency_ms": timed[key].median_ms,
            "latency_spread": (timed[key].low_ms, timed[key].high_ms),
            "engine": engine,
            "precision": precision_of(network, engine),
            "batch": batch,
            "length": lengths[key],
            "of": described(network, lengths[key]),
            "peak_bytes": peaks[key],
        }
        for key, network in zip(keys, networks, strict=True)
    ]


def spread(examples: Sequence[Example], batch: int, max_batches: int) -> list[Example]:
    """Choose whole batches evenly over the examples, in order; a last, smaller one only where it is the only one."""
    whole = max(1, len(examples) // batch)
    starts = np.linspace(0, whole - 1, min(max_batches, whole)).round().astype(int)
    return [example for start in starts for example in examples[start * batch : (start + 1) * batch]]


def _mean_length(batches: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> float:
    if "attention_mask" not in batches[0]:
        return 1.0
    tokens = sum(int(one["attention_mask"].sum()) for one in batches)
    return tokens / sum(len(one["attention_mask"]) for one in batches)
