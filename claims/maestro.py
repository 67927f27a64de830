"""Maestro (Horváth et al. 2023): ordered dropout makes any prefix of two factors a good lower rank.

25 points of half a minute on one core; besides, every matrix is trained alone for each of 4 (two minutes each), and all
are trained through the network 4 times (five minutes each); the prefixes take five. Fifty minutes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from claims import coding
from claims.alds import by_share, by_share_weighted
from claims.coding import MEASURED, Arm, Claim, Point, Settings, Workbench
from claims.common import Outcome, Say
from claims.comq import all_or_most
from claims.equal_bytes import against, part_of
from claims.vtrans import Part
from isthmus.bottlenecks.coder import Floats, Setting
from isthmus.bottlenecks.rank.alds import Alds
from isthmus.bottlenecks.rank.factors import LowRank
from isthmus.bottlenecks.rank.maestro import Factors, Maestro, RankPrefix, train
from isthmus.bottlenecks.rank.products import product
from isthmus.flow.study import start_study
from isthmus.network import pool, tokenize
from isthmus.storage.coded import Coded, decode
from isthmus.tasks.divergence import divergence

Weights = Mapping[str, Floats]
Pair = tuple[Tensor, Tensor]

ORDERED, EACH, ALONE, WEIGHTED, PLAIN = (
    "maestro",
    "trained at each rank",
    "maestro, each matrix alone",
    "svd, weighted",
    "svd",
)
SHARES = (0.5, 0.4, 0.3, 0.2)
PREFIXES, PREFIX_STEPS, WITHIN = 64, 2000, 0.01
LENGTH, CLIP = 64, 1.0


@dataclass(frozen=True)
class Through(Maestro):
    """Factors of all matrices, trained together through the network.

    They start from the weighted decomposition of the original. Each step draws a rank for every matrix, from 1 to that
    of the largest share, and lowers the divergence of the network's outputs from the original's on unlabelled texts.

    Parameters
    ----------
    ordered : bool
        Otherwise every step takes the ranks of one share, and each share is trained anew.
    passes : int
        Steps of training.
    batch : int
        Texts in a step.
    rate : float
        The largest step size of Adam, as a share of the root mean square of a factor; falls along half a cosine.
    """

    ordered: bool = True
    passes: int = 150
    batch: int = 32
    rate: float = 0.01


def alone(share: float, weights: Weights) -> Settings:
    """Return for every matrix the rank whose factors hold this share of its numbers, each trained alone."""
    return by_share(share, weights, Maestro())


class Bench(Workbench):
    """The workbench of a claim about coders, with factors trained through the network, once for a seed."""

    def __init__(self, bench: Workbench) -> None:
        vars(self).update(vars(bench))
        study = start_study(bench.network, bench.task)
        self.texts = study.examples[min(MEASURED, len(study.examples) // 2) :]
        self.trained: dict[tuple[int, float], dict[str, Factors]] = {}

    def codes(self, arm: Arm, level: float, seed: int) -> dict[str, Coded]:
        """Return the code of every matrix."""
        coder, _ = arm.make(level)
        if not isinstance(coder, Through):
            return super().codes(arm, level, seed)
        key = seed, 0.0 if coder.ordered else level
        if key not in self.trained:
            self.trained[key] = self.through(coder, SHARES[0] if coder.ordered else level, seed)
        wanted = by_share(level, self.weights, coder)
        return {
            name: product(
                found.left[:, : wanted[name][1].rank].astype(np.float64),
                found.right[: wanted[name][1].rank].astype(np.float64),
                coder.bits,
            )
            for name, found in self.trained[key].items()
        }

    def through(self, coder: Through, share: float, seed: int) -> dict[str, Factors]:
        """Return the factors of all matrices, trained together; the network is left as it is."""
        pairs, adam = self._started(coder, share)
        factors = [factor for pair in pairs.values() for factor in pair]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, coder.passes)
        drawing, network = np.random.default_rng(seed), self.network
        for _ in range(coder.passes):
            picked = drawing.choice(len(self.texts), size=min(coder.batch, len(self.texts)), replace=False)
            inputs = tokenize(network, [self.texts[place][: 8 * LENGTH] for place in picked])
            inputs = {name: tensor[:, :LENGTH] for name, tensor in inputs.items()}
            with torch.no_grad():
                target = pool(network, network.model(**inputs), inputs["attention_mask"])
            held = {name: int(drawing.integers(1, u.shape[1] + 1)) if coder.ordered else u.shape[1]
                    for name, (u, _) in pairs.items()}  # fmt: skip
            built = {name: u[:, : held[name]] @ v[: held[name]] for name, (u, v) in pairs.items()}
            output = torch.func.functional_call(network.model, built, kwargs=inputs)
            loss = divergence(pool(network, output, inputs["attention_mask"]), target, network.pooling)
            gradients = torch.autograd.grad(loss, factors, allow_unused=True)  # a pooler takes no part
            for factor, gradient in zip(factors, gradients, strict=True):
                factor.grad = gradient
            torch.nn.utils.clip_grad_norm_(factors, CLIP)
            adam.step()
            schedule.step()
        return {name: Factors(u.detach().numpy(), v.detach().numpy()) for name, (u, v) in pairs.items()}

    def _started(self, coder: Through, share: float) -> tuple[dict[str, Pair], torch.optim.Adam]:
        """Return the factors of the weighted decomposition, ready to be trained."""
        pairs: dict[str, Pair] = {}
        groups: list[dict[str, Any]] = []
        for name, (low, setting) in by_share_weighted(share, self.weights).items():
            coded: Any = low.code(self.weights[name], self.statistics[name], setting)
            for side in (coded.left, coded.right):
                factor = torch.from_numpy(decode(side)).requires_grad_()
                size = float(factor.detach().square().mean().sqrt()) or 1.0
                groups.append({"params": [factor], "lr": coder.rate * size})
            pairs[name] = (groups[-2]["params"][0], groups[-1]["params"][0])
        return pairs, torch.optim.Adam(groups)


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return, at the largest share of matrices trained alone, how far prefixes are from the best of their ranks."""
    if arm.label != ALONE or point.level != SHARES[0]:
        return {}
    started = time.monotonic()
    found: dict[str, dict[str, list[float]]] = {"svd": {}, "pca": {}}
    for name, weight in bench.weights.items():
        found["svd"][name] = above_best(weight, None)
        moments = bench.statistics[name].moments
        if moments is not None:
            found["pca"][name] = above_best(weight, moments)
    return {"prefixes": found, "prefix_seconds": time.monotonic() - started}


def above_best(weight: Floats, moments: Floats | None) -> list[float]:
    """Return the error of the outputs of each trained prefix, over that of the best matrix of its rank, less 1.

    The best is the truncated singular value decomposition for white inputs, else the principal components of the
    outputs (Eckart and Young 1936). A rank at which nothing is left to lose is left out.
    """
    rank = min(PREFIXES, *weight.shape)
    recipe = RankPrefix(rank, steps=PREFIX_STEPS)
    factors = train(weight, moments, recipe)
    inputs = np.eye(weight.shape[1]) if moments is None else moments.astype(np.float64)
    exact = weight.astype(np.float64)
    power = exact @ inputs @ exact.T if weight.shape[0] <= weight.shape[1] else None
    if power is None:
        values, directions = np.linalg.eigh(inputs)
        root = directions * np.sqrt(np.maximum(values, 0))
        power = root.T @ (exact.T @ exact) @ root
    spectrum = np.maximum(np.linalg.eigvalsh(power)[::-1], 0)
    left, right = factors.left.astype(np.float64), factors.right.astype(np.float64)
    # |W - U V|² = |W|² - 2 <W, U V> + |U V|², with inner products over the inputs, for all prefixes at once.
    cross = np.cumsum(np.einsum("ir,ir->r", left, exact @ inputs @ right.T))
    norms = (left.T @ left) * (right @ inputs @ right.T)
    squares = np.array([norms[: held + 1, : held + 1].sum() for held in range(rank)])
    lost = spectrum.sum() - 2 * cross + squares
    best = spectrum.sum() - np.cumsum(spectrum)[:rank]
    kept = best > 1e-6 * spectrum.sum()
    return [float(one) for one in (lost[kept] / best[kept] - 1)]


def prefixes(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): every prefix is as good as the decomposition of its rank."""
    rule = (
        f"of every matrix, each of {PREFIXES} prefixes loses at most {WITHIN:.0%} more of the outputs than the best "
        "matrix of its rank, for white inputs and for the network's own; mixed: of more than half of the matrices"
    )
    own: dict[str, dict[str, list[float]]] = next((one["prefixes"] for one in outcomes if "prefixes" in one), {})
    worst = {kind: [max(row) for row in rows.values() if row] for kind, rows in own.items()}
    passed = sum(one <= WITHIN for rows in worst.values() for one in rows)
    total = sum(len(rows) for rows in worst.values())
    text = "; ".join(
        f"{kind}: {sum(one <= WITHIN for one in rows)} of {len(rows)} matrices, at worst {max(rows):+.2%}"
        for kind, rows in worst.items()
        if rows
    )
    return part_of("prefixes are those of the svd and of pca", rule, all_or_most(passed, total), text, worst=worst)


def truncation(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): truncated after training through the network, it keeps more than a decomposition afterwards."""
    return against("truncation at equal bytes", outcomes, ORDERED, [WEIGHTED, PLAIN])


CLAIM = Claim(
    slug="maestro",
    claim=(
        "Factors trained by ordered dropout recover the singular value decomposition of a linear map and principal "
        "components of its outputs in every prefix; truncated afterwards they keep more than a decomposition of the "
        "trained network at equal size."
    ),
    experiment=(
        "Only factors are trained, and without labels. They hold 50 to 20% of the numbers of all matrices, in 8 "
        "bits with a scale for each rank, entropy coded. `maestro` trains the factors of all matrices together, 150 "
        "steps of 32 texts with a rank drawn for each matrix, by the divergence from the original; one training is cut "
        "to all shares. The baselines are the truncated decomposition of every matrix, plain and weighted by inputs "
        "and outputs. Shown beside: as many steps at the ranks of one share alone, and every matrix trained alone, by "
        "the error of its outputs, which no training can bring below that of the weighted decomposition. Prefixes are "
        "those of 64 ranks after 2000 steps."
    ),
    arms=(
        Arm(ORDERED, SHARES, lambda _: (Through(), Setting(8)), "{:.0%} of the numbers", draws=True),
        Arm(WEIGHTED, SHARES, lambda _: (LowRank(), Setting(8)), "{:.0%} of the numbers", decide=by_share_weighted),
        Arm(PLAIN, SHARES, lambda _: (Alds(), Setting(8)), "{:.0%} of the numbers", decide=by_share),
        Arm(ALONE, SHARES, lambda _: (Maestro(), Setting(8)), "{:.0%} of the numbers", decide=alone),
        Arm(EACH, SHARES[2:3], lambda _: (Through(ordered=False), Setting(8)), "{:.0%} of the numbers"),
    ),
    parts=lambda outcomes: [truncation(outcomes), prefixes(outcomes)],
    observe=observe,
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = coding.SEEDS,
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Measure the points that ``out`` lacks, and return the verdict; nothing is kept in ``cache``."""
    return coding.run(CLAIM, Bench(bench), out, seeds=seeds, quick=quick, say=say)
