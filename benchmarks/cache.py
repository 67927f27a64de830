"""Caches of lm_docs at equal allocated bytes: every selector and code, the joint plan, and kvpress, in one run.

What is measured, and on what, is in `claims.caches`. The joint plan chooses for each layer among selectors, entries and
bits by what these lose on calibration texts; a single method has the same setting in every layer. kvpress runs in an
environment of its own, on the same network, rows and questions.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import caches
from claims.caches import BLOCK, LENGTH, READ, RECENT, SINKS, Bed, Settings, through, widest
from claims.data import why_not
from claims.tables import markdown_table
from safetensors.numpy import save_file

from benchmarks.environments import environment, own_torch
from isthmus.allocation.cache import lost_alone, plan_cache
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.codes.coupled import Coupled, learnt
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.roles import Code
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput, IsthmusError, UnreachableBudget
from isthmus.flow.record import machine, versions
from isthmus.storage.files import write_atomic
from isthmus.zoo.catalogue import zoo_folder

SHARES = (0.25, 0.125)
SELECTORS = ("snapkv", "window", "h2o", "key-norm", "scissorhands", "keyformer", "ems-kv")
BITS = (8, 6, 5, 4, 3, 2, 1)
PLANNED = ("snapkv",)
JOINT, FULL = "joint plan", "full"
TARGETS = {0.25: (0.01, 0.01), 0.125: (0.03, 0.05)}
"""At a share: the most that perplexity may rise (a share) and recall fall (a share of answers)."""
KVPRESS = "0.5.5"
ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / "build" / "venv-kvpress"

Say = Callable[[str], None]
Point = dict[str, Any]


def _kept(selector: Any, code: Code) -> Callable[[int], Settings | None]:
    def make(entries: int) -> Settings | None:
        if entries < SINKS + RECENT + BLOCK:
            return None
        return CacheSetting(selector, (code,), entries=entries, sinks=SINKS, recent=RECENT, block=BLOCK)

    return make


def uniform(bits: int) -> Uniform:
    """Return the code of so many bits whose groups a block fills."""
    return Uniform(bits, bits, tokens=BLOCK)


def tables(bed: Bed) -> list[Coupled]:
    """Return the tables of coupled channels of each layer, one bit a channel, learnt on calibration texts."""
    from transformers import DynamicCache

    held = DynamicCache(config=bed.model.config)
    with torch.no_grad():
        bed.model(bed.calibration, past_key_values=held)
    return [learnt(layer.keys, layer.values) for layer in held.layers]


def singles(bed: Bed) -> dict[str, Callable[[float], Any]]:
    """Return the single methods by name: from a budget of bytes to settings, None where it cannot be kept."""

    def selected(name: str, code: Code) -> Callable[[float], Any]:
        return lambda budget: widest(bed, _kept(registry.selector(name), code), LENGTH, budget)

    def coded(budget: float) -> Any:
        rising = [
            CacheSetting(codes=(uniform(bits),), sinks=SINKS, recent=RECENT, block=BLOCK) for bits in reversed(BITS)
        ]
        return widest(bed, lambda at: rising[at], len(rising) - 1, budget)

    def zipped(budget: float) -> Any:
        def make(thousandths: int) -> Settings | None:
            mass = max(1, thousandths) / 1000
            codes = (uniform(4), uniform(2))
            return CacheSetting(registry.selector("zipvl", mass=mass), codes, sinks=SINKS, recent=RECENT, block=BLOCK)

        return widest(bed, make, 1000, budget)

    def coupled(budget: float) -> Any:
        settings = [CacheSetting(codes=(one,), sinks=SINKS, recent=RECENT, block=BLOCK) for one in tables(bed)]
        return widest(bed, lambda _: settings, 0, budget)

    found: dict[str, Callable[[float], Any]] = {"snapkv, 4 bits": selected("snapkv", uniform(4)), "uniform bits": coded}
    found |= {name: selected(name, Plain()) for name in SELECTORS}
    found |= {f"snapkv, {bits} bits": selected("snapkv", uniform(bits)) for bits in (8, 2)}
    found["zipvl, 4 and 2 bits"] = zipped
    found["coupled, 1 bit"] = coupled
    return found


def offered() -> list[CacheSetting]:
    """Return what a layer may take in the joint plan."""
    found = [CacheSetting(codes=(code,), sinks=SINKS, recent=RECENT, block=BLOCK) for code in _codes()]
    for name in PLANNED:
        for share in (0.35, 0.2, 0.1):
            for code in _codes()[1:]:
                made = _kept(registry.selector(name), code)(int(share * LENGTH))
                if isinstance(made, CacheSetting):
                    found.append(made)
    return found


def _codes() -> list[Code]:
    return [Plain(), *(uniform(bits) for bits in (4, 3, 2))]


def run(
    out: Path, *, shares: tuple[float, ...] = SHARES, peer: bool = True, say: Say = print, again: bool = False
) -> dict[str, Any]:
    """Measure all methods at all shares that ``out`` lacks, each on disk before the next begins.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    """
    if missing := why_not(*caches.NEEDS):
        raise BadInput(f"cache: skipped, {missing}")
    bed = caches.bed()
    full = bed.full_bytes
    held = {} if again or not out.exists() else json.loads(out.read_text(encoding="utf-8"))
    points: list[Point] = held.get("points", [])

    def keep(point: Point) -> None:
        points.append(point)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in point.items() if isinstance(value, float))
        say(f"{point['method']} at {point['level']:.1%}: {shown or point.get('left', '')}")
        _write(out, points, full)

    def known(method: str, level: float) -> bool:
        return any((one["method"], one["level"]) == (method, level) for one in points)

    if not known(FULL, 1.0):
        keep({"method": FULL, "level": 1.0, **caches.measured(bed, bed.full)})
    missing_peer = [level for level in shares if not known("kvpress window", level)] if peer else []
    with pressing(bed, missing_peer, say) as pressed:
        methods = singles(bed)
        losses: Any = None
        for level in shares:
            if not known(JOINT, level):
                started = time.monotonic()
                if losses is None:
                    losses = lost_alone(bed.model, [bed.calibration], offered(), prompt=LENGTH - READ)
                settings = _planned(bed, level * full, losses)
                seconds = time.monotonic() - started
                keep({"method": JOINT, "level": level, **_measured(bed, settings), "seconds": seconds})
            for name, fit in methods.items():
                if not known(name, level):
                    keep({"method": name, "level": level, **_measured(bed, fit(level * full))})
        for point in pressed():
            keep(point)
    return _write(out, points, full)


def _measured(bed: Bed, settings: Any) -> dict[str, Any]:
    if settings is None:
        return {"left": "no setting of it keeps this budget"}
    one = settings if isinstance(settings, CacheSetting) else settings[0]
    told = {"entries": one.entries} if isinstance(settings, CacheSetting) else {"settings": _named(settings)}
    return {**caches.measured(bed, through(bed.model, settings)), **told}


def _named(settings: Any) -> list[str]:
    """Return each layer's setting in a word: selector, entries, bits."""
    told = []
    for one in settings:
        code = one.codes[0]
        bits = f"{code.key_bits} bits" if isinstance(code, Uniform) else code.name
        told.append(f"{one.selector.name} {one.entries or 'all'}, {bits}")
    return told


def _planned(bed: Bed, budget: float, losses: Any) -> Any:
    try:
        return plan_cache(
            bed.model,
            [bed.calibration],
            budget=int(budget),
            length=LENGTH - 1,
            prompt=LENGTH - READ,
            choices=offered(),
            losses=losses,
            measure=lambda settings: bed.taken(through(bed.model, settings), bed.calibration[:2]),
        ).settings
    except UnreachableBudget:
        return None


@contextmanager
def pressing(bed: Bed, shares: list[float], say: Say) -> Iterator[Callable[[], list[Point]]]:
    """Let kvpress run beside what follows; yield what waits for its points, measured as ours are.

    Raises
    ------
    IsthmusError
        If its worker fails.
    """
    if not shares:
        yield list
        return
    python = environment(VENV, [f"kvpress=={KVPRESS}", own_torch()], say=say)
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        folder = Path(name)
        tensors = {"rows": bed.rows.numpy()}
        asked = []
        for kind, texts in bed.asked.items():
            for at, one in enumerate(texts):
                tensors[f"{kind}.{at}"] = one.ids.astype(np.int64)
                asked.append({"kind": kind, "name": f"{kind}.{at}", "answers": [list(each) for each in one.answers]})
        save_file(tensors, folder / "in.safetensors")
        request = {
            "model": str(zoo_folder(caches.NAME)), "folder": name, "shares": shares, "asked": asked, "read": READ,
            "chunk": caches.CHUNK, "batch": caches.BATCH, "sinks": SINKS, "recent": RECENT,
        }  # fmt: skip
        (folder / "request.json").write_text(json.dumps(request))
        worker = Path(__file__).with_name("cache_worker.py")
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        told = (folder / "told.txt").open("w+")
        process = subprocess.Popen(
            [str(python), "-P", "-W", "ignore", str(worker), str(folder / "request.json")],
            stdout=subprocess.DEVNULL, stderr=told, env=variables,
        )  # fmt: skip

        def wait() -> list[Point]:
            if process.wait():
                lines = (folder / "told.txt").read_text().strip().splitlines()
                raise IsthmusError(f"kvpress: {lines[-1] if lines else 'failed without a word'}")
            found: list[Point] = json.loads((folder / "points.json").read_text())
            return found

        try:
            yield wait
        finally:
            process.kill()
            process.wait()
            told.close()


def _write(out: Path, points: list[Point], full: int) -> dict[str, Any]:
    made = {
        "benchmark": "cache",
        "record": {
            "versions": {**versions(), "kvpress": KVPRESS}, "machine": machine(), "network": caches.NAME,
            "length": LENGTH, "read": READ, "rows": caches.ROWS, "asked": caches.ASKED, "full_bytes": full,
        },
        "points": points,
        "targets": targets(points),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(made, indent=1) + "\n").encode())
    return made


def targets(points: list[Point]) -> list[dict[str, Any]]:
    """Return what was aimed at beside what the joint plan reached, and whether it is ahead of all others."""
    whole = next((one for one in points if one["method"] == FULL), None)
    rows = []
    for level, (worse, forgotten) in TARGETS.items():
        ours = next((one for one in points if (one["method"], one["level"]) == (JOINT, level)), None)
        if whole is None or ours is None or "perplexity" not in ours:
            continue
        rise, fall = ours["perplexity"] / whole["perplexity"] - 1, whole["recall"] - ours["recall"]
        rows.append(
            {
                "name": f"cache at {level:.1%} of bfloat16",
                "target": f"perplexity {worse:+.0%} at most, recall -{100 * forgotten:.0f} points at most",
                "reached": f"perplexity {rise:+.2%}, recall {-100 * fall:+.1f} points at {ours['share']:.1%}",
                "met": rise <= worse and fall <= forgotten,
            }
        )
        others = [one for one in points if one["level"] == level and one["method"] != JOINT and "perplexity" in one]
        if others:
            best = min(others, key=lambda one: one["perplexity"])
            rows.append(
                {
                    "name": f"joint plan against the best single method at {level:.1%}",
                    "target": "lower perplexity, no less recall",
                    "reached": f"{ours['perplexity']:.3f} and {ours['recall']:.1%}, {best['method']} "
                    f"{best['perplexity']:.3f} and {best['recall']:.1%}",
                    "met": ours["perplexity"] <= best["perplexity"] and ours["recall"] >= best["recall"],
                }
            )
    return rows


def section(data: Mapping[str, Any]) -> list[str]:
    """Return the section of docs/benchmarks.md."""
    record, points = data["record"], data["points"]
    whole = next(one for one in points if one["method"] == FULL)
    lines = ["## Key-value caches", ""]
    rows = []
    for one in sorted(points, key=lambda one: (-one["level"], one.get("perplexity", 1e9))):
        if "perplexity" not in one:
            rows.append([f"{one['level']:.1%}", one["method"], "", one["left"], "", "", "", ""])
            continue
        kinds = [f"{100 * one[kind]:.0f}" for kind in ("pairs", "copies", "needles")]
        rise = one["perplexity"] / whole["perplexity"] - 1
        rows.append(
            [
                f"{one['level']:.1%}",
                one["method"],
                f"{one['share']:.1%}",
                f"{one['perplexity']:.3f}",
                f"{rise:+.2%}",
                *kinds,
            ]
        )
    heads = ["budget", "method", "allocated", "perplexity", "rise", "pairs", "copies", "needles"]
    lines += [markdown_table(heads, rows), ""]
    lines += [
        f"`python -m benchmarks cache` on lm_docs in bfloat16: {record['rows']} held-out sequences of "
        f"{record['length']} tokens, all but the last {record['read']} read as a prompt, perplexity of these; "
        f"recall in percent of answers, {record['asked']} texts a kind. Allocated is what the cache's tensors take "
        f"at the end of a sequence, as a share of the full cache's {record['full_bytes']:,} bytes. kvpress "
        f"{record['versions']['kvpress']} evicts from the prompt alone; what is read on stays.",
        "",
    ]
    return lines
