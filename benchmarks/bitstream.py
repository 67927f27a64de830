"""Our bitstream beside zstd and xz: the same integers of the same matrices, their bytes and the time to read them.

The matrices of an encoder are quantized at three steps. Each matrix is then written by ``storage.blobs``, and its
integers (int8 where they fit, else int16) are given to zstd at level 19 and to xz at preset 9, one matrix at a time
too. Bytes are compared with the tables of the coder and without the scales of the matrix, which every way of writing
needs. Times are processor time, so that nothing else that runs counts, each the median of runs by turns.
"""

from __future__ import annotations

import json
import lzma
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from claims.common import Say
from claims.data import why_not
from claims.tables import markdown_table

from benchmarks.reach import Target
from isthmus.bottlenecks.bits.rate_distortion import quantize, steps
from isthmus.bottlenecks.curves import coded_matrices
from isthmus.errors import BadInput
from isthmus.flow.record import machine, versions
from isthmus.flow.study import start_study
from isthmus.network import Network
from isthmus.relevance.sensitivity import Sensitivity, collect_sensitivity
from isthmus.storage.artifact import save_artifact
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Uniform, decode
from isthmus.storage.files import write_atomic
from isthmus.storage.holders import with_codes
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder

NEEDS = ("stsb",)
STEPS = (1.5e-4, 3e-4, 4.5e-4)
"""About 3, 2 and 1.5 bits a weight of all-MiniLM-L6-v2."""
TEMPERING = 0.5
ONE = (np.zeros((1, 1), dtype=np.int32),)
"""The scale 1 for a whole matrix, in a byte or two."""
ROUNDS = 3
SMALLER, FAST = 0.10, 100.0
"""Targets: the share of bytes that ours has less than either of them; MB of float32 weights read in a second."""

Codes = Mapping[str, Uniform]
Read = Callable[[], None]


@dataclass(frozen=True)
class Written:
    """The same matrices in three ways, by name, and what reads each of them back to float32 weights."""

    sizes: dict[str, int]
    reads: dict[str, Read]


def coded_at(network: Network, sensitivity: Mapping[str, Sensitivity], step: float) -> dict[str, Uniform]:
    """Return every matrix quantized at a step, rounded to nearest."""
    found = {}
    for name, own in sensitivity.items():
        weight = network.model.get_parameter(name).detach().numpy()
        found[name] = quantize(weight, *steps(own, step, TEMPERING), slope=0.0)
    return found


def write_all(codes: Codes) -> Written:
    """Write matrices by our bitstream, by zstd and by xz."""
    import zstandard

    ours = {name: pack(code) for name, code in codes.items()}
    unscaled = {name: pack(replace(code, scales=ONE)) for name, code in codes.items()}
    narrow = {name: narrowest(code) for name, code in codes.items()}
    squeeze, expand = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    compressed = {
        "zstd": {name: squeeze.compress(array.tobytes()) for name, array in narrow.items()},
        "xz": {name: lzma.compress(array.tobytes(), preset=9) for name, array in narrow.items()},
    }

    def read_ours() -> None:
        for name, data in ours.items():
            decode(unpack(data, codes[name].shape))

    def reader(kind: str, decompress: Callable[[bytes], bytes]) -> Read:
        def read() -> None:
            for name, data in compressed[kind].items():
                array = np.frombuffer(decompress(data), dtype=narrow[name].dtype).reshape(codes[name].shape)
                decode(replace(codes[name], integers=array.astype(np.int32)))

        return read

    written = {"isthmus": unscaled, **compressed, "with scales": ours}
    sizes = {kind: sum(map(len, blobs.values())) for kind, blobs in written.items()}
    reads = {"isthmus": read_ours, "zstd": reader("zstd", expand.decompress), "xz": reader("xz", lzma.decompress)}
    return Written(sizes, reads)


def narrowest(code: Uniform) -> np.ndarray[Any, Any]:
    """Return the integers of a code in the narrowest type of 8 or 16 bits that holds them.

    Raises
    ------
    BadInput
        If 16 bits do not.
    """
    for dtype in (np.int8, np.int16):
        if np.iinfo(dtype).min <= code.integers.min() and code.integers.max() <= np.iinfo(dtype).max:
            return code.integers.astype(dtype)
    raise BadInput("bitstream: an integer takes more than 16 bits; give a larger step")


def by_turns(reads: Mapping[str, Read], rounds: int) -> dict[str, float]:
    """Return the median processor seconds of each; in every round each runs once."""
    taken: dict[str, list[float]] = {name: [] for name in reads}
    for _ in range(rounds):
        for name, read in reads.items():
            started = time.process_time()
            read()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def measure_step(codes: Codes, step: float, rounds: int) -> dict[str, Any]:
    """Return bytes, bits a weight and reading speeds (MB of float32 weights a second) at one step."""
    weights = sum(code.integers.size for code in codes.values())
    written = write_all(codes)
    seconds = by_turns(written.reads, rounds)
    return {
        "step": step,
        "weights": weights,
        "bits": 8 * written.sizes["with scales"] / weights,
        "bytes": written.sizes,
        "mb_per_second": {name: 4 * weights / taken / 1e6 for name, taken in seconds.items()},
    }


def measure_loading(network: Network, codes: Codes, rounds: int) -> dict[str, float]:
    """Return the processor seconds that opening takes, of the network in float32 and of the one that is coded."""
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        folders = {"float32": Path(name) / "plain", "coded": Path(name) / "coded"}
        save_artifact(network, folders["float32"], {})
        save_artifact(with_codes(network, codes), folders["coded"], {})
        sizes = {f"{kind}_bytes": (folder / "model.safetensors").stat().st_size for kind, folder in folders.items()}

        def opening(folder: Path) -> Read:
            def read() -> None:
                open_network(folder)

            return read

        seconds = by_turns({kind: opening(folder) for kind, folder in folders.items()}, rounds)
    return {**seconds, **sizes}


def bitstream_targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Return the targets with what was reached, each by its worst row."""
    found = []
    for rival in ("zstd", "xz"):
        name, target = f"bytes of coded weights against {rival}", f"≥ {SMALLER:.0%} fewer"
        if not rows:
            found.append(Target(name, target, "not measured", None))
            continue
        saved = [1 - row["bytes"]["isthmus"] / row["bytes"][rival] for row in rows]
        reached = f"{min(saved):.1%} to {max(saved):.1%} fewer"
        found.append(Target(name, target, reached, min(saved) >= SMALLER))
    name, target = "reading coded weights on one core", f"≥ {FAST:.0f} MB of float32 weights a second"
    if not rows:
        return [*found, Target(name, target, "not measured", None)]
    speeds = [row["mb_per_second"]["isthmus"] for row in rows]
    return [*found, Target(name, target, f"{min(speeds):.0f} to {max(speeds):.0f} MB/s", min(speeds) >= FAST)]


def section(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of docs/benchmarks.md that show a result."""
    rows = []
    for row in result["rows"]:
        ours, speeds = row["bytes"]["isthmus"], row["mb_per_second"]
        cells = [f"{row['bits']:.2f}", f"{row['bytes']['with scales'] / 1e6:.2f}", f"{ours / 1e6:.2f}"]
        cells += [
            f"{row['bytes'][rival] / 1e6:.2f} ({ours / row['bytes'][rival] - 1:+.1%})" for rival in ("zstd", "xz")
        ]
        rows.append([*cells, *(f"{speeds[name]:.0f}" for name in ("isthmus", "zstd", "xz"))])
    loading = result["loading"]
    heads = [
        *("bits a weight", "MB with scales", "MB of integers", "in zstd -19", "in xz -9"),
        *("MB/s", "MB/s of zstd", "MB/s of xz"),
    ]
    return [
        "## The bitstream beside general compressors",
        "",
        markdown_table(heads, rows),
        "",
        f"The same integers of {result['rows'][0]['weights'] / 1e6:.1f} M weights; ours with the coder's tables. Speed "
        "is that of getting float32 weights back, in processor time. Opening the coded network of "
        f"{loading['coded_bytes'] / 1e6:.1f} MB takes {loading['coded']:.1f} s, the same in float32 "
        f"({loading['float32_bytes'] / 1e6:.1f} MB) {loading['float32']:.1f} s.",
        "",
    ]


def run(
    out: Path, *, model: str = "minilm", levels: Sequence[float] = STEPS, rounds: int = ROUNDS, say: Say = print
) -> list[Target]:
    """Measure, write the result to ``out``, and hold it against the targets.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    """
    folder, missing = data_folder(), why_not(*NEEDS)
    if folder is None or missing:
        raise BadInput(f"bitstream: skipped, {missing}")
    network = open_network(model)
    study = start_study(network, load_task(f"sts:{folder / 'stsb'}"))
    sensitivity = collect_sensitivity(study.probe, coded_matrices(network.model), study.examples)
    rows, loading = [], {}
    for number, step in enumerate(levels):
        codes = coded_at(network, sensitivity, step)
        rows.append(measure_step(codes, step, rounds))
        say(f"step {step:g}: {json.dumps({key: rows[-1][key] for key in ('bits', 'bytes', 'mb_per_second')})}")
        if number == len(levels) // 2:
            loading = measure_loading(network, codes, rounds)
            say(f"loading: {json.dumps(loading)}")
    reached = bitstream_targets(rows)
    tools = {**versions(), "constriction": version("constriction"), "zstandard": version("zstandard")}
    result = {
        "benchmark": "bitstream",
        "record": {"versions": tools, "machine": machine(), "data": study.task.fingerprint, "rounds": rounds},
        "targets": [vars(target) for target in reached],
        "rows": rows,
        "loading": loading,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(result, indent=1) + "\n").encode())
    for target in reached:
        say(f"{target.name}: {target.target}; {target.reached}")
    return reached
