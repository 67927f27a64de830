"""The latency table: what presence, heads, neurons and width cost in ms on this machine, fitted to timed variants."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from isthmus.cost.latency import Batch, Latency
from isthmus.cost.predict import kept_counts
from isthmus.cost.rates import Rate, Term, presence
from isthmus.storage.files import write_atomic

if TYPE_CHECKING:
    from isthmus.sites.site import Site

Built = TypeVar("Built")
Said = Callable[[int, int], None]
"""Takes the steps done and the steps in all."""

TABLE_VERSION = 2  # 2: timed in a process of its own
# What latency grows with; each is summed over the layers that stay.
FEATURES = (
    "constant",
    "width",
    "layers",
    "layers*width",
    "layers*heads",
    "layers*heads*width",
    "layers*neurons",
    "layers*neurons*width",
)
# Shares of layers, heads, neurons and width that stay in the variants that are timed. Few layers keep the conversion
# short; two with all layers tie the sum over layers down.
_VARIANTS = (
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 0.5, 0.35, 0.55),
    (0.67, 0.25, 0.2, 0.4),
    (0.34, 1.0, 1.0, 1.0),
    (0.34, 0.25, 1.0, 1.0),
    (0.34, 1.0, 0.3, 1.0),
    (0.34, 1.0, 1.0, 0.5),
    (0.34, 0.3, 0.2, 1.0),
    (0.34, 0.3, 1.0, 0.5),
    (0.34, 1.0, 0.2, 0.4),
    (0.34, 0.3, 0.2, 0.3),
)
# Rows of the embedding table that variants keep: reading from it hardly takes time, but memory.
_ROWS = 4096


@dataclass(frozen=True)
class Variant:
    """A narrowed network that was timed: kept counts by site (or layer), measured and fitted ms."""

    counts: Mapping[str, float]
    measured_ms: float
    fitted_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of a batch by feature, and how well they fit what was timed.

    ``coefficients`` are ms per feature of `FEATURES`; ``error_median`` and ``error_max`` are relative.
    """

    key: str
    engine: str
    batch: int
    machine: str
    coefficients: tuple[float, ...]
    variants: tuple[Variant, ...]
    error_median: float
    error_max: float
    version: int = TABLE_VERSION

    def rate(self, sites: Sequence[Site]) -> Rate:
        """Return the latency in ms of one batch as a function of the kept units."""
        terms: list[Term] = []
        by_name = feature_terms(sites)
        for name, coefficient in zip(FEATURES, self.coefficients, strict=True):
            if coefficient:
                terms += [Term(coefficient * term.coefficient, term.factors) for term in by_name[name]]
        return Rate("latency", tuple(terms))


def feature_terms(sites: Sequence[Site]) -> dict[str, tuple[Term, ...]]:
    """Return each feature as terms over the sites; a feature whose sites are missing has none."""
    width = next((site.name for site in sites if site.name == "width"), None)
    terms: dict[str, list[Term]] = defaultdict(list)

    def add(name: str, *factors: str) -> None:
        terms[name].append(Term(1.0, factors))
        if width is not None:
            terms["width" if name == "constant" else f"{name}*width"].append(Term(1.0, (*factors, width)))

    add("constant")
    for layers in (site for site in sites if site.kind == "layers"):
        for index in range(layers.units):
            add("layers", presence(index))
            for site in sites:
                if site.kind in ("heads", "neurons") and site.layer in (index, None):
                    add(f"layers*{site.kind}", presence(index), site.name)
    return {name: tuple(terms[name]) for name in FEATURES}


def latency_table(
    sites: Sequence[Site],
    build: Callable[[dict[str, tuple[int, ...]]], Built],
    measure: Callable[[Mapping[str, Built], Sequence[Batch], int, Said], Mapping[str, Latency]],
    batches: Sequence[Batch],
    *,
    fingerprint: str,
    engine: str,
    batch: int = 32,
    folder: str | Path | None = None,
    rounds: int = 5,
    max_batches: int = 6,
    seed: int = 0,
    progress: Said = lambda done, total: None,
) -> LatencyTable:
    """Time a few narrowed variants of a network on this machine and fit what its units cost.

    Parameters
    ----------
    sites : sequence of Site
    build : callable
        From kept units by site (those that are missing stay whole) to what can be timed, such as an exported file.
    measure : callable
        Times what was built, by name, on batches, a number of rounds; the last argument takes the rounds done and
        the rounds in all.
    batches : sequence of mapping of str to ndarray, shape ``(batch, length)``
        Real sentences; a few spread evenly over them are timed.
    fingerprint : str
        Of the network; part of the key under which the table is kept.
    engine : str
    batch : int
        Sentences in a batch.
    folder : str or Path, optional
        Where tables are kept. One that fits is read instead of timing again.
    rounds, max_batches : int
        How often, and on how many batches, each variant is timed.
    seed : int
        Of the jitter that keeps the variants' counts from being round, as a plan's counts are not round either.
    progress : callable, optional
        Called with the steps done and the steps in all.

    Returns
    -------
    LatencyTable
    """
    chosen = _spread(batches, max_batches)
    key = _key(fingerprint, engine, batch, chosen)
    path = Path(folder) / f"latency-{key}.json" if folder is not None else None
    known = _read(path) if path is not None else None
    if known is not None:
        return known
    variants = choose_variants(sites, seed)
    vocabulary, folded = _fold(sites, chosen)
    steps = len(variants) + rounds + 1
    built: dict[str, Built] = {}
    for index, kept in enumerate(variants):
        built[str(index)] = build({**kept, **vocabulary})
        progress(index + 1, steps)
    done = len(variants)
    timed = measure(built, folded, rounds, lambda at, _: progress(done + at, steps))
    measured = [timed[str(index)].median_ms for index in range(len(variants))]
    table = fit_table(sites, variants, measured, key=key, engine=engine, batch=batch)
    if path is not None:
        _write(path, table)
    return table


def fit_table(
    sites: Sequence[Site],
    variants: Sequence[Mapping[str, Sequence[int]]],
    measured: Sequence[float],
    *,
    key: str,
    engine: str,
    batch: int,
) -> LatencyTable:
    """Fit coefficients that are not negative, least squares of the relative error; the first variant counts most.

    Parameters
    ----------
    variants : sequence of mapping of str to sequence of int
        Kept units by site; the first is the whole network.
    measured : sequence of float
        Milliseconds of each.
    """
    from scipy.optimize import nnls

    counts = [kept_counts(sites, kept) for kept in variants]
    by_name = feature_terms(sites)
    matrix = np.array([[Rate(name, by_name[name])(count) for name in FEATURES] for count in counts], dtype=float)
    times = np.asarray(measured, dtype=float)
    # Columns are brought to one scale, rows to relative errors; budgets are often shares of the whole network's time.
    scale = np.where(matrix[0] > 0, matrix[0], 1.0)
    weight = 1.0 / times
    weight[0] *= 3.0
    solution, _ = nnls(matrix / scale * weight[:, None], times * weight)
    coefficients = solution / scale
    fitted = matrix @ coefficients
    errors = np.abs(fitted / times - 1)
    return LatencyTable(
        key=key,
        engine=engine,
        batch=batch,
        machine=machine(),
        coefficients=tuple(float(value) for value in coefficients),
        variants=tuple(
            Variant(count, float(time), float(fit)) for count, time, fit in zip(counts, times, fitted, strict=True)
        ),
        error_median=float(np.median(errors)),
        error_max=float(errors.max()),
    )


def choose_variants(sites: Sequence[Site], seed: int = 0) -> list[dict[str, tuple[int, ...]]]:
    """Return the kept units of the variants to time: the whole network first, without repetitions."""
    generator = np.random.default_rng(seed)
    variants: list[dict[str, tuple[int, ...]]] = []
    for layers, heads, neurons, width in _VARIANTS:
        shares = {"layers": layers, "heads": heads, "neurons": neurons, "width": width}
        kept: dict[str, tuple[int, ...]] = {}
        for site in sites:
            share = shares.get(site.kind, 1.0)
            if share == 1.0:
                continue
            jitter = float(generator.uniform(0.85, 1.15)) if site.units >= 16 else 1.0
            count = min(site.units, max(site.minimum, 1, round(share * jitter * site.units)))
            if count < site.units:
                kept[site.name] = tuple(range(count))
        if kept not in variants:
            variants.append(kept)
    return variants


def machine() -> str:
    """Return what this machine is, as far as latency depends on it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def _spread(batches: Sequence[Batch], most: int) -> list[Batch]:
    """Choose full-sized batches evenly; the last one may hold fewer sentences."""
    rows = max(len(batch["input_ids"]) for batch in batches)
    full = [batch for batch in batches if len(batch["input_ids"]) == rows]
    chosen = np.linspace(0, len(full) - 1, min(most, len(full))).round().astype(int)
    return [full[index] for index in chosen]


def _fold(sites: Sequence[Site], batches: Sequence[Batch]) -> tuple[dict[str, tuple[int, ...]], list[Batch]]:
    """Shrink the variants' embedding table, and renumber the batches' tokens to rows that are left."""
    site = next((site for site in sites if site.kind == "vocabulary"), None)
    if site is None or site.units <= _ROWS:
        return {}, list(batches)
    keep = tuple(sorted({*range(_ROWS), *site.fixed}))
    # Rows from 8 on, so that an ordinary token never becomes padding.
    rows = 8 + np.arange(site.units, dtype=np.int64) % (_ROWS - 8)
    rows[list(keep)] = np.arange(len(keep))
    return {site.name: keep}, [{**batch, "input_ids": rows[np.asarray(batch["input_ids"])]} for batch in batches]


def _key(fingerprint: str, engine: str, batch: int, batches: Sequence[Batch]) -> str:
    import importlib.metadata

    shapes = [list(np.shape(one["input_ids"])) for one in batches]
    version = importlib.metadata.version(engine)
    parts = [TABLE_VERSION, fingerprint, engine, version, batch, machine(), shapes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _write(path: Path, table: LatencyTable) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(asdict(table), indent=1) + "\n").encode())


def _read(path: Path) -> LatencyTable | None:
    """Return a table that was kept, or None where there is none that makes sense: it is then timed again."""
    if not path.exists():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        variants = tuple(Variant(**variant) for variant in data.pop("variants"))
        coefficients = tuple(float(value) for value in data.pop("coefficients"))
        table = LatencyTable(coefficients=coefficients, variants=variants, **data)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    sound = len(coefficients) == len(FEATURES) and all(math.isfinite(value) and value >= 0 for value in coefficients)
    return table if sound and any(coefficients) and table.version == TABLE_VERSION else None
