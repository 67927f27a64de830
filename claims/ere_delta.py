"""ERE (Efficient Storage of Fine-Tuned Models via Low-Rank Approximation of Weight Residuals): deltas on a base.

24 points of about a minute on one core, after three fine-tunings of four minutes each, which are kept: 40 minutes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from claims import coding
from claims.coding import SEEDS, Claim, Point, Workbench, point_of
from claims.common import Ledger, Outcome, Say
from claims.comq import all_or_most
from claims.data import why_not
from claims.equal_bytes import LEAST_NATS, against, part_of, resampled, share_passed
from claims.vtrans import Part
from isthmus.bottlenecks.coder import Floats, Setting
from isthmus.bottlenecks.rank.factors import LowRank
from isthmus.bottlenecks.rank.residual import BITS, factored, spectrum_of, truncated
from isthmus.errors import BadInput
from isthmus.flow.delta import make_delta
from isthmus.network import Network, pool, tokenize
from isthmus.recovery.losses import cosent_loss
from isthmus.relevance.probe import measure_network
from isthmus.storage.coded import Coded, Product, decode
from isthmus.storage.delta import delta_bytes, load_delta, matrices_of, save_delta
from isthmus.storage.files import write_atomic
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.metrics import spearman

Pairs = Sequence[tuple[str, str, float]]

OURS, ONE = "rank by matrix", "one rank for all"
SHARES = (0.045, 0.02, 0.01, 0.005)
"""Of the bytes of the fine-tuned network's weight file."""
LIMIT, LOST, ENERGY = 0.05, 0.01, 0.9
FIRST = 16
"""The rank that is tried first."""


@dataclass(frozen=True)
class Tuning:
    """How the networks are fine-tuned: pairs by CoSENT (Su 2022), AdamW, a rate that falls along half a cosine."""

    steps: int = 100
    batch: int = 32
    rate: float = 2e-5
    length: int = 64


def training_pairs(bench: Workbench) -> Pairs:
    """Return the scored pairs of STS-B train, less those with a sentence that is scored on.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    """
    folder = data_folder()
    if folder is None:
        raise BadInput(f"ere-delta: skipped, {why_not()}")
    held = set(bench.task.held_out.passages)
    return [pair for pair in load_task(f"sts:{folder / 'stsb'}").pairs if pair[0] not in held and pair[1] not in held]


def fine_tune(base: Network, pairs: Pairs, tuning: Tuning, seed: int) -> Network:
    """Return a network of its own, trained on scored pairs."""
    model = copy.deepcopy(base.model).eval().requires_grad_(True)
    tuned = replace(base, name=f"{base.name} tuned", model=model, source=None, record={}, codes={})
    short = replace(tuned, max_length=min(tuned.max_length, tuning.length))
    adam = torch.optim.AdamW(model.parameters(), lr=tuning.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, tuning.steps)
    drawing = np.random.default_rng(seed)
    for _ in range(tuning.steps):
        places = drawing.choice(len(pairs), size=min(tuning.batch, len(pairs)), replace=False)
        picked = [pairs[place] for place in places]
        inputs = tokenize(short, [one[0] for one in picked] + [one[1] for one in picked])
        left, right = pool(short, model(**inputs), inputs["attention_mask"]).chunk(2)
        adam.zero_grad()
        cosent_loss(left, right, torch.tensor([one[2] for one in picked])).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        schedule.step()
    model.requires_grad_(False)
    return tuned


def one_rank(base: Network, tuned: Network, budget: int) -> dict[str, Coded]:
    """Return codes of the residuals, all of the highest rank at which the file is within a budget of bytes.

    The width of the integers is that of those at hand that leaves less of the residuals.

    Raises
    ------
    BadInput
        If not even rank 1 is.
    """
    old, new = matrices_of(base), matrices_of(tuned)
    residuals = {name: new[name] - old[name] for name in old}
    spectra = {name: spectrum_of(residual) for name, residual in residuals.items()}
    spectra = {name: one for name, one in spectra.items() if len(one.values)}
    most = max((len(one.values) for one in spectra.values()), default=0)
    fixed = len(delta_bytes(base, tuned, {}))
    best: dict[str, Coded] = {}
    least = np.inf
    for bits in BITS:
        wholes = {name: factored(one, len(one.values), bits) for name, one in spectra.items()}

        def at(rank: int, wholes: Mapping[str, Product] = wholes) -> dict[str, Coded]:
            return {name: truncated(one, min(rank, one.left.shape[1])) for name, one in wholes.items()}

        low, high, guess = 0, most + 1, min(FIRST, most)
        while high - low > 1:
            size = len(delta_bytes(base, tuned, at(guess)))
            low, high = (guess, high) if size <= budget else (low, guess)
            # Bytes are nearly in proportion to the rank, and counting them takes seconds.
            expected = int((budget - fixed) * guess / max(size - fixed, 1))
            guess = min(max(expected, low + 1), high - 1)
        found = at(low) if low else {}
        lost = sum(float(((residuals[name] - decode(code)) ** 2).sum()) for name, code in found.items())
        if low and lost < least:
            best, least = found, lost
    if not best:
        raise BadInput(f"{budget} bytes: rank 1 for every matrix takes more; give a larger share")
    return best


def kept_energy(matrix: Floats) -> float:
    """Return the share of its ranks that a matrix needs for nine tenths of its squared norm."""
    small = matrix.astype(np.float64)
    small = small.T if small.shape[0] < small.shape[1] else small
    spectrum = np.maximum(np.linalg.eigvalsh(small.T @ small)[::-1], 0)
    total = float(spectrum.sum())
    return (1 + int(np.searchsorted(np.cumsum(spectrum), ENERGY * total))) / len(spectrum) if total > 0 else 0.0


class Bench:
    """A base, networks that were fine-tuned from it (one a seed), and what is left of them in a delta.

    Parameters
    ----------
    pairs : sequence of (str, str, float)
        What is fine-tuned on.
    cache : Path or None
        A folder where fine-tuned weights are kept.
    """

    def __init__(self, bench: Workbench, pairs: Pairs, tuning: Tuning, cache: Path | None = None) -> None:
        self.bench, self.pairs, self.tuning, self.cache = bench, pairs, tuning, cache
        self.ready: dict[int, Tuned] = {}

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself."""
        return {**self.bench.record(), "tuning": repr(self.tuning), "pairs": len(self.pairs)}

    def tuned(self, seed: int) -> Tuned:
        """Return the network of a seed, from the cache where it is there."""
        if seed not in self.ready:
            self.ready = {seed: self._tuned(seed)}
        return self.ready[seed]

    def _tuned(self, seed: int) -> Tuned:
        from safetensors.torch import load_file, save

        base, started = self.bench.network, time.monotonic()
        digest = hashlib.sha256(json.dumps([self.record(), seed]).encode()).hexdigest()[:16]
        file = None if self.cache is None else self.cache / f"tuned-{digest}.safetensors"
        if file is not None and file.exists():
            network = fine_tune(base, self.pairs, replace(self.tuning, steps=0), seed)
            network.model.load_state_dict(load_file(file))
        else:
            network = fine_tune(base, self.pairs, self.tuning, seed)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                weights = {name: one.contiguous().clone() for name, one in network.model.state_dict().items()}
                write_atomic(file, save(weights))
        old, new = matrices_of(base), matrices_of(network)
        decay = {name: [kept_energy(new[name] - old[name]), kept_energy(old[name])] for name in old}
        return Tuned(self.bench, network, decay, time.monotonic() - started)

    def measure(self, point: Point) -> Outcome:
        """Run one point: write a delta, open it on the base, score."""
        tuned, base = self.tuned(point.seed), self.bench.network
        budget, started = int(point.level * tuned.bytes), time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "tuned.delta"
            if point.arm == OURS:
                made = make_delta(base, tuned.network, file, budget)
                size, ranks = int(made["bytes"]), made["ranks"]
            else:
                codes = one_rank(base, tuned.network, budget)
                size = save_delta(base, tuned.network, file, codes)
                ranks = {name: one.left.shape[1] for name, one in codes.items() if isinstance(one, Product)}
            restored = load_delta(base, file)
        spent = time.monotonic() - started
        return {
            "arm": point.arm,
            "level": point.level,
            "setting": f"{point.level:.1%} of the bytes",
            "seed": point.seed,
            "bytes": size,
            "share": size / tuned.bytes,
            "bits": 8 * size / self.bench.original["weights"],
            **tuned.against(restored),
            "decay": tuned.decay,
            "ranks": ranks,
            "seconds": {"coding": spent, "tuning": tuned.seconds, "all": time.monotonic() - started},
        }


class Tuned:
    """A fine-tuned network, with its own outputs on the texts that nats are measured on, and its score."""

    def __init__(self, bench: Workbench, network: Network, decay: Mapping[str, list[float]], seconds: float) -> None:
        self.bench, self.network, self.decay, self.seconds = bench, network, decay, seconds
        self.bytes = int(bench.original["bytes"])
        with torch.inference_mode():
            self.probes = [
                replace(
                    probe,
                    network=replace(network, max_length=probe.network.max_length),
                    reference=tuple(pool(network, network.model(**x), x["attention_mask"]) for x in probe.inputs),
                )
                for probe in bench.probes
            ]
        self.cosines = bench.likeness(network)
        self.score = spearman(self.cosines, bench.scores)

    def against(self, restored: Network) -> dict[str, Any]:
        """Return the nats and the score of a restored network, relative to the fine-tuned one."""
        nats = [measure_network(probe, restored) for probe in self.probes]
        cosines = self.bench.likeness(restored)
        score = spearman(cosines, self.bench.scores)
        return {
            "nats": float(np.average(nats, weights=[len(probe.examples[0]) for probe in self.probes])),
            "nats_by_group": nats,
            "score": score,
            "tuned_score": self.score,
            "base_score": self.bench.original["score"],
            "relative": score / self.score,
            "resamples": resampled(cosines, self.cosines, self.bench.scores),
        }


def kept(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): base and delta keep the score in a twentieth of the bytes."""
    rule = (
        f"with ranks by matrix at {SHARES[0]:.1%}, the delta's file is under {LIMIT:.0%} of the fine-tuned network's "
        f"and the score at most {LOST:.2f} below its score, for every seed; mixed: for some"
    )
    own = [one for one in outcomes if one["arm"] == OURS and one["level"] == SHARES[0]]
    passed = [one["share"] < LIMIT and one["score"] >= one["tuned_score"] - LOST for one in own]
    text = "; ".join(
        f"seed {one['seed']}: {one['share']:.2%} of the bytes, {one['score']:.4f} of {one['tuned_score']:.4f} (the "
        f"base {one['base_score']:.4f})"
        for one in own
    )
    return part_of("score under a twentieth of the bytes", rule, share_passed(passed), text)


def decaying(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): the spectra of residuals fall faster than those of weights."""
    rule = (
        f"the residual of every matrix needs a smaller share of its ranks for {ENERGY:.0%} of its squared norm than "
        "the matrix itself, for every seed; mixed: of more than half"
    )
    rows = [row for decay in _by_seed(outcomes) for row in decay.values() if row[0] > 0]
    passed = sum(residual < weight for residual, weight in rows)
    text = ""
    if rows:
        residual, weight = (float(np.median([row[side] for row in rows])) for side in (0, 1))
        text = f"{passed} of {len(rows)}; in the median {residual:.1%} of the ranks against {weight:.1%}"
    return part_of("spectra of residuals", rule, all_or_most(passed, len(rows)), text)


def _by_seed(outcomes: Iterable[Outcome]) -> list[dict[str, list[float]]]:
    return list({one["seed"]: one["decay"] for one in outcomes}.values())


def layerwise(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): ranks chosen by matrix lose less than one rank for all at equal bytes."""
    return against("ranks by matrix at equal bytes", outcomes, OURS, [ONE])


CLAIM = Claim(
    slug="ere-delta",
    claim=(
        "What fine-tuning adds to a network is of lower rank than its weights: a base and a quantized residual in "
        "under a twentieth of the bytes keep the score, and ranks chosen by matrix keep more than one rank for all."
    ),
    experiment=(
        "{model} fine-tuned on the scored pairs of STS-B train (100 steps of 32 pairs, CoSENT), once for each seed. "
        "Its delta on the base is the residual of every matrix, as factors of 4 or 8 bits, entropy coded, and what is "
        "no matrix in float16; bytes are those of the file. Nats are of divergence from the fine-tuned network, on "
        "512 training sentences; the score is Spearman's correlation on {scored}, relative to that network's. "
        "At equal bytes: as for coders, with the spread over 50 paired bootstraps, groups of sentences, and seeds."
    ),
    arms=tuple(
        coding.Arm(label, SHARES, lambda _: (LowRank(), Setting(4)), "{:.1%} of the bytes", draws=True)
        for label in (OURS, ONE)
    ),
    parts=lambda outcomes: [kept(outcomes), decaying(outcomes), layerwise(outcomes)],
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    quick: bool = False,
    cache: Path | None = None,
    pairs: Pairs | None = None,
    tuning: Tuning = Tuning(),
    say: Say = print,
) -> str:
    """Measure the points that ``out`` lacks, each on disk before the next begins, and return the verdict.

    Raises
    ------
    BadInput
        If ``out`` holds points that were made otherwise, or the data is not on this machine.
    IsthmusError
        At the end, if some points could not be measured.
    """
    own = Bench(bench, training_pairs(bench) if pairs is None else pairs, tuning, cache)
    scored = "pairs held out of STS-B train" if "validation" in bench.task.name else "STS-B dev"
    head = {
        "slug": CLAIM.slug, "kind": "coding", "claim": CLAIM.claim,
        "experiment": CLAIM.experiment.format(model=bench.network.name, scored=scored),
        "record": own.record(), "original": bench.original,
    }  # fmt: skip
    wanted = set(CLAIM.points(seeds))
    ledger = Ledger(out, head, lambda found: CLAIM.judge(found, complete={point_of(one) for one in found} >= wanted))
    return coding.measure_missing(
        CLAIM,
        ledger,
        CLAIM.points(seeds, quick=quick),
        own.measure,
        lambda found: (
            f"{found['bytes'] / 1e6:.3f} MB, {found['score']:.4f} of {found['tuned_score']:.4f}, "
            f"{max(found['nats'], LEAST_NATS):.2g} nats"
        ),
        say,
    )
