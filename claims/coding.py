"""Coding: what a coder makes of a whole network at one setting, and how methods are compared at equal bytes.

A point is: code every matrix, pack the codes, let the network hold what they stand for, and measure. Nothing is
trained. Statistics come from the texts of the study's probe; nats from as many other training texts; scores from pairs
that nothing else here sees.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from claims.common import Ledger, Outcome, Say
from claims.equal_bytes import Doubles, resampled
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.coder import Coder, Floats, MatrixStatistics, Setting
from isthmus.bottlenecks.curves import coded_matrices
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.coding import file_bytes, statistics_of
from isthmus.flow.record import versions
from isthmus.flow.study import start_study
from isthmus.flow.verifying import bytes_on_disk
from isthmus.network import Network, embed
from isthmus.progress import silent
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.coded import Coded, decode
from isthmus.storage.files import write_atomic
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.holders import with_codes
from isthmus.tasks import Task
from isthmus.tasks.metrics import cosine, spearman

Statistics = dict[str, MatrixStatistics]
Settings = Mapping[str, tuple[Coder, Setting]]

SEEDS = (0, 1, 2)
ROW = 1 << 20
"""A group of more columns than any matrix has: one scale for a row."""
MEASURED, GROUP = 512, 64
"""Training texts that nats are measured on, and how many of like length form a group."""
LEVELS, GROUPS = "{:g} levels", "groups of {:g}"
EXPERIMENT = (
    "Every matrix of {model}, the word embeddings included, coded at one setting; nothing is trained. Bytes are those "
    "of the whole weight file: codes packed and entropy coded with their scales and tables, all else in float16. "
    "Statistics come from 256 training sentences of STS-B and SST-2, nats of divergence from 512 others. The score is "
    "Spearman's correlation on {scored}, relative to the original's. At equal bytes: the difference between two "
    "curves, read off straight lines between their settings, in the mean over the bytes that both reach. Its spread is "
    "that over 50 paired bootstraps of the scored pairs, or the standard error of the logarithm of nats over 8 groups "
    "of sentences, with that over seeds where a coder draws. "
)


def whole(statistics: MatrixStatistics) -> MatrixStatistics:
    """Return all that is known."""
    return statistics


def flat(statistics: MatrixStatistics) -> MatrixStatistics:
    """Return statistics in which all weights are equally sensitive."""
    own = statistics.sensitivity
    return replace(statistics, sensitivity=Sensitivity(np.ones_like(own.rows), np.ones_like(own.columns)))


def unseen(statistics: MatrixStatistics) -> MatrixStatistics:
    """Return statistics without what enters a matrix."""
    return replace(statistics, moments=None)


def untouched(network: Network, statistics: Mapping[str, MatrixStatistics]) -> AbstractContextManager[None]:
    """Run a network as it is."""
    return nullcontext()


@dataclass(frozen=True)
class Arm:
    """A method with the settings that it is measured at.

    Parameters
    ----------
    levels : tuple of float
        One number a setting.
    make : callable
        From a level to the coder and its setting.
    shown : str
        A format for a level.
    draws : bool
        Whether the seed makes a difference.
    known : callable
        What of the statistics the coder is shown.
    decide : callable or None
        From a level and all weights to coder and setting by matrix, where these are not the same for all.
    running : callable
        A context in which the coded network is measured.
    """

    label: str
    levels: tuple[float, ...]
    make: Callable[[float], tuple[Coder, Setting]]
    shown: str = "{:g} bits"
    draws: bool = False
    known: Callable[[MatrixStatistics], MatrixStatistics] = whole
    decide: Callable[[float, Mapping[str, Floats]], Settings] | None = None
    running: Callable[[Network, Mapping[str, MatrixStatistics]], AbstractContextManager[None]] = untouched

    def spec(self, level: float) -> str:
        """Return in words what a point of this level was coded by."""
        coder, setting = self.make(level)
        used = (self.known, self.running, *([self.decide] if self.decide else []))
        names = ", ".join(str(getattr(one, "__name__", one)) for one in used)
        return f"{coder!r} at {setting!r}, {names}"


def grid(levels: float, group: int = ROW) -> Setting:
    """Return the setting of a symmetric grid of so many levels, an odd number."""
    return Setting(math.log2(levels + 0.5), group)


def nearest_arm(levels: tuple[float, ...], label: str = "rtn") -> Arm:
    """Return rounding to the nearest, a scale for each row that reaches its largest weight."""
    return Arm(label, levels, lambda level: (FineQuant(), grid(level)), LEVELS)


def fitted_arm(levels: tuple[float, ...], label: str = "rtn, fitted") -> Arm:
    """Return rounding to the nearest, each row's scale that of the least squared error."""
    return Arm(label, levels, lambda level: (Gptq(), grid(level)), LEVELS, known=unseen)


@dataclass(frozen=True)
class Point:
    """One arm at one level."""

    arm: str
    level: float
    seed: int


def point_of(outcome: Mapping[str, Any]) -> Point:
    """Return the point that an outcome belongs to."""
    return Point(outcome["arm"], float(outcome["level"]), int(outcome["seed"]))


class Workbench:
    """What all points share: one network, one task, one set of statistics.

    Parameters
    ----------
    task : Task
        Of kind ``sts``.
    cache : Path or None
        A folder where statistics are kept; empty it when what collects them changes.
    """

    def __init__(self, network: Network, task: Task, *, cache: Path | None = None, say: Say = print) -> None:
        if task.kind != "sts":
            raise BadInput(f"task {task.name}: of kind {task.kind}; coders are scored on pairs of sentences, give sts:")
        self.network, self.task = network, task
        study = start_study(network, task)
        count = min(MEASURED, len(study.examples) // 2)
        # What statistics were collected on would flatter the coders that look at them.
        probe = make_probe(network, study.examples[:count], batch=min(GROUP, max(count // 2, 4)))
        self.probes = [
            replace(probe, examples=(texts,), inputs=(inputs,), reference=(reference,))
            for texts, inputs, reference in zip(probe.examples, probe.inputs, probe.reference, strict=True)
        ]
        self.names = coded_matrices(network.model)
        self.weights: dict[str, Floats] = {
            name: network.model.get_parameter(name).detach().numpy().copy() for name in self.names
        }

        def collect() -> Statistics:
            texts = study.examples[count:]
            return statistics_of(study.probe, self.names, [Gptq()], texts, seed=0, progress=silent)

        record = json.dumps([self.record(), count])
        file = None if cache is None else cache / f"{hashlib.sha256(record.encode()).hexdigest()[:16]}.safetensors"
        self.statistics = kept_statistics(file, self.names, collect)
        self.cosines = self.likeness(network)
        self.scores = np.asarray(task.held_out.scores, dtype=np.float64)
        self.original = {
            "bytes": bytes_on_disk(network),
            "half_bytes": file_bytes(network, {}),
            "weights": sum(weight.size for weight in self.weights.values()),
            "score": spearman(self.cosines, self.scores),
        }
        say(f"{network.name}: {len(self.names)} matrices, {self.original['score']:.4f} on {task.name}")

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself; nothing of it is about the machine."""
        return {"versions": versions(), "network": fingerprint(self.network), "data": self.task.fingerprint}

    def experiment(self) -> str:
        """Return what is done, in words."""
        scored = "pairs held out of STS-B train" if "validation" in self.task.name else "STS-B dev"
        return EXPERIMENT.format(model=self.network.name, scored=scored)

    def likeness(self, network: Network) -> Doubles:
        """Return the cosine similarity of each held-out pair, shape ``(pairs,)``."""
        held = self.task.held_out
        place = {text: index for index, text in enumerate(held.passages)}
        vectors = embed(network, held.passages, batch_size=64).astype(np.float64)
        return cosine(vectors, *(np.array([place[text] for text in side]) for side in (held.left, held.right)))

    def settings(self, arm: Arm, level: float) -> Settings:
        """Return coder and setting of every matrix."""
        if arm.decide is not None:
            return arm.decide(level, self.weights)
        return dict.fromkeys(self.names, arm.make(level))

    def codes(self, arm: Arm, level: float, seed: int) -> dict[str, Coded]:
        """Return the code of every matrix."""
        return {
            name: coder.code(self.weights[name], arm.known(self.statistics[name]), setting, seed=seed)
            for name, (coder, setting) in self.settings(arm, level).items()
        }

    def reconstruction(self, codes: Mapping[str, Coded]) -> dict[str, float]:
        """Return the squared error of each linear map's outputs over that of zeros, ``tr(E M Eᵀ) / tr(W M Wᵀ)``."""
        found = {}
        for name, coded in codes.items():
            moments = self.statistics[name].moments
            if moments is not None:
                weight = self.weights[name]
                error = weight - decode(coded)
                power = float(np.einsum("ij,ij", weight @ moments, weight, dtype=np.float64))
                lost = float(np.einsum("ij,ij", error @ moments, error, dtype=np.float64))
                found[name] = lost / power if power > 0 else 0.0
        return found

    def measure(self, arm: Arm, point: Point, observe: Observe | None = None) -> Outcome:
        """Run one point: code, pack, decode, score."""
        started = time.monotonic()
        codes = self.codes(arm, point.level, point.seed)
        seconds = time.monotonic() - started
        student = with_codes(self.network, codes)
        with arm.running(student, self.statistics):
            nats = [measure_network(probe, student) for probe in self.probes]
            cosines = self.likeness(student)
        packed = {name: len(code) for name, code in student.codes.items()}
        return {
            "arm": arm.label,
            "level": point.level,
            "setting": arm.shown.format(point.level),
            "seed": point.seed,
            "spec": arm.spec(point.level),
            "bytes": file_bytes(student, codes),
            "bits": 8 * sum(packed.values()) / self.original["weights"],
            "nats": float(np.average(nats, weights=[len(probe.examples[0]) for probe in self.probes])),
            "nats_by_group": nats,
            "score": spearman(cosines, self.scores),
            "relative": spearman(cosines, self.scores) / self.original["score"],
            "resamples": resampled(cosines, self.cosines, self.scores),
            "seconds": {"coding": seconds, "all": time.monotonic() - started},
            "packed": packed,
            **({} if observe is None else observe(self, arm, point, codes)),
        }


Observe = Callable[[Workbench, Arm, Point, Mapping[str, Coded]], Mapping[str, Any]]


def kept_statistics(file: Path | None, names: Sequence[str], collect: Callable[[], Statistics]) -> Statistics:
    """Return statistics from a file of tensors, or collect them and write it."""
    from safetensors.numpy import load_file, save

    if file is not None and file.exists():
        held = load_file(file)
        return {
            name: MatrixStatistics(
                Sensitivity(held[f"{name} rows"], held[f"{name} columns"]), held.get(f"{name} moments")
            )
            for name in names
        }
    found = collect()
    if file is not None:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, own in found.items():
            arrays |= {f"{name} rows": own.sensitivity.rows, f"{name} columns": own.sensitivity.columns}
            arrays |= {} if own.moments is None else {f"{name} moments": own.moments}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return found


@dataclass(frozen=True)
class Claim:
    """A statement, the points that test it and what is decided from them; the first part decides whether it fails."""

    slug: str
    claim: str
    experiment: str
    arms: tuple[Arm, ...]
    parts: Callable[[Sequence[Outcome]], list[Part]]
    observe: Observe | None = None

    def points(self, seeds: Sequence[int], *, quick: bool = False) -> list[Point]:
        """Return the points, seed by seed; a quick run takes both ends of each arm."""
        every = [
            Point(arm.label, float(level), seed if arm.draws else 0)
            for seed in seeds
            for arm in self.arms
            for level in ((arm.levels[0], arm.levels[-1]) if quick else arm.levels)
        ]
        return list(dict.fromkeys(every))

    def judge(self, outcomes: Sequence[Outcome], *, complete: bool) -> dict[str, Any]:
        """Return the parts and the verdict, as for every claim."""
        return judged(self.parts(outcomes), complete=complete)


def judged(parts: list[Part], *, complete: bool) -> dict[str, Any]:
    """Return the parts and the verdict: the first part decides whether a claim fails."""
    verdicts = [part["verdict"] for part in parts]
    if not complete or UNTESTED in verdicts:
        verdict = "unfinished"
    elif verdicts[0] == FAILS:
        verdict = FAILS
    else:
        verdict = HOLDS if all(found == HOLDS for found in verdicts) else MIXED
    return {"verdict": verdict, "parts": parts}


def run(
    claim: Claim, bench: Workbench, out: Path, *, seeds: Sequence[int] = SEEDS, quick: bool = False, say: Say = print
) -> str:
    """Measure the points that ``out`` lacks, each on disk before the next begins, and return the verdict.

    Raises
    ------
    BadInput
        If ``out`` holds points that were made otherwise.
    IsthmusError
        At the end, if some points could not be measured.
    """
    wanted, arms = set(claim.points(seeds)), {arm.label: arm for arm in claim.arms}
    head = {
        "slug": claim.slug, "kind": "coding", "claim": claim.claim, "experiment": bench.experiment() + claim.experiment,
        "record": bench.record(), "original": bench.original,
    }  # fmt: skip
    ledger = Ledger(out, head, lambda found: claim.judge(found, complete={point_of(one) for one in found} >= wanted))
    for outcome in ledger.outcomes:
        arm = arms.get(outcome["arm"])
        if arm is None or arm.spec(outcome["level"]) != outcome["spec"]:
            raise BadInput(f"{out}: its points of {outcome['arm']} were coded otherwise; move the file away")
    return measure_missing(
        claim,
        ledger,
        claim.points(seeds, quick=quick),
        lambda point: bench.measure(arms[point.arm], point, claim.observe),
        lambda found: (
            f"{found['bytes'] / 1e6:.2f} MB, {found['bits']:.2f} bits, relative {found['relative']:.4f}, "
            f"{found['nats']:.4f} nats"
        ),
        say,
    )


class Named(Protocol):
    """Anything that is known by a slug."""

    @property
    def slug(self) -> str:
        """The row of the catalogue."""


def measure_missing(
    claim: Named,
    ledger: Ledger,
    points: Sequence[Point],
    measure: Callable[[Point], Outcome],
    told: Callable[[Outcome], str],
    say: Say,
) -> str:
    """Measure the points that a ledger lacks, each on disk before the next begins, and return the verdict.

    Parameters
    ----------
    told : callable
        From an outcome to what is said of it.

    Raises
    ------
    IsthmusError
        At the end, if some points could not be measured.
    """
    there = {point_of(outcome) for outcome in ledger.outcomes}
    missing = [point for point in points if point not in there]
    say(f"{claim.slug}: {len(missing)} points to measure, {len(there)} there already")
    failed: list[str] = []
    for number, point in enumerate(missing):
        title = f"[{number + 1}/{len(missing)}] {point.arm} at {point.level:g}, seed {point.seed}: "
        try:
            outcome = measure(point)
        except IsthmusError as error:
            failed.append(f"{point.arm} at {point.level:g}, seed {point.seed}: {error}")
            say(f"{title}FAILED {error}")
            continue
        ledger.add(outcome)
        say(f"{title}{told(outcome)}, {outcome['seconds']['all']:.0f} s")
    ledger.write()
    concluded = ledger.conclude(ledger.outcomes)
    for part in concluded["parts"]:
        say(f"{part['name']}: {part['verdict']} ({part['summary']})")
    say(f"{claim.slug}: {concluded['verdict']}")
    if failed:
        raise IsthmusError(f"{claim.slug}: {len(failed)} points could not be measured; the first: {failed[0]}")
    return str(concluded["verdict"])
