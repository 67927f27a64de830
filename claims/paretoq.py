"""ParetoQ (Liu et al. 2025): one way to train codes of 4 to 1 bits, with the quantizer that suits each width.

21 points of 150 steps, each about six minutes on one core: two hours. What other claims about trained codes share is
here as well: a workbench whose points are trained, and how they are measured one after another.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from claims.coding import (
    SEEDS,
    Arm,
    Claim,
    Observe,
    Point,
    Settings,
    Workbench,
    ahead,
    combined,
    compare,
    of_arm,
    part_of,
    point_of,
    share_passed,
)
from claims.common import STEPS, Ledger, Outcome, Say
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.bottlenecks.bits.fake_quantize import Quantizer
from isthmus.bottlenecks.bits.grid import covering, fitted, groups, peaks, spread
from isthmus.bottlenecks.bits.paretoq import ParetoQ
from isthmus.bottlenecks.coder import Coder, Floats, MatrixStatistics, Setting
from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.coding import LEARNED, Codes, fit_scales
from isthmus.flow.efforts import recipe_for
from isthmus.network import Network
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.straight import Through, straight_through, trained_codes
from isthmus.recovery.teacher import teacher_outputs
from isthmus.recovery.train import recover
from isthmus.relevance.probe import measure_network
from isthmus.storage.coded import Uniform, decode
from isthmus.storage.holders import with_codes

WIDTHS = (4.0, 3.0, 2.0, 1.58, 1.0)
FEW, SHARED_AT = 2.0, (2.0, 1.58)
OURS, SHARED, ENDS = "paretoq", "lsq", "1 and 4 bits"
LARGER = 1.5
QUICK = 20
"""Steps of a quick run."""
_COUNTS = {4.0: 16, 3.0: 8, 2.0: 4, 1.58: 3, 1.0: 2}
EXPERIMENT = (
    "Every matrix of {model}, the word embeddings included, coded at one setting; then weights, scales and all else "
    "trained together on the grids of the codes (straight-through), {steps} steps of distillation from the original "
    "on {texts} unlabelled sentences of STS-B and SST-2, the same at every setting, and coded anew on the grids as "
    "trained. Bytes are those of the whole weight file: codes packed and entropy coded with their scales, all else in "
    "float16. Nats of divergence are measured on 512 other sentences, the score is Spearman's correlation on {scored}, "
    "relative to the original's. At equal bytes: the difference between two curves, read off straight lines between "
    "their settings. Its spread is that over 50 paired bootstraps of the scored pairs, or the standard error of the "
    "logarithm of nats over groups of sentences, with that over seeds. "
)


@dataclass(frozen=True)
class Lsq:
    """One form for every width: ``round(clip(w / scale, low, high))``, at whole bits with ``low`` one below ``-high``.

    Scales start at the least squared error, as those of ParetoQ do here.
    """

    name: ClassVar[str] = "lsq"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return 4, 3, 2 and 1.58 bits; at one bit there is nothing but zero and one end."""
        return tuple(Setting(bits) for bits in WIDTHS[:-1])

    @staticmethod
    def quantizer(bits: float) -> Quantizer:
        """Return the quantizer of a width; only what lies within the ends moves."""
        if bits == 1.58:
            return Quantizer(-1, 1)
        return Quantizer(-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Uniform:
        """Return the code of a matrix of shape ``(rows, columns)``, a scale for each row."""
        quantizer = self.quantizer(setting.bits)

        def levels(scaled: Floats) -> Floats:
            return np.clip(np.rint(scaled), quantizer.low, quantizer.high)

        first = covering(peaks(weight, groups(weight.shape[1], setting.group)), quantizer.high)
        exponents = fitted(weight, first, levels)
        found = levels(weight / spread(exponents, (weight.shape[0], weight.shape[1])))
        return Uniform(found.astype(np.int32), (exponents,))


@dataclass(frozen=True)
class Anew:
    """A coder whose code is made anew from the weights at every step: its scales follow them and are not trained."""

    own: Coder
    name: ClassVar[str] = "anew"
    slug: ClassVar[str | None] = None
    family: ClassVar[str] = "bits"
    needs: ClassVar[frozenset[str]] = frozenset()

    def settings(self, shape: tuple[int, int]) -> tuple[Setting, ...]:
        """Return those of the coder."""
        return self.own.settings(shape)

    def code(self, weight: Floats, statistics: MatrixStatistics, setting: Setting, *, seed: int = 0) -> Any:
        """Return the code of the coder."""
        return self.own.code(weight, statistics, setting, seed=seed)


class Recoded(nn.Module):
    """A matrix coded anew wherever it is read; the gradient passes through."""

    def __init__(self, coder: Coder, statistics: MatrixStatistics, setting: Setting) -> None:
        super().__init__()
        self.coder, self.statistics, self.setting = coder, statistics, setting

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what the code of the weight stands for."""
        code = self.coder.code(weight.detach().numpy(), self.statistics, self.setting)
        found: torch.Tensor = Through.apply(weight, torch.from_numpy(decode(code)))  # type: ignore[no-untyped-call]
        return found


@contextmanager
def coded_anew(model: nn.Module, parts: Mapping[str, Recoded]) -> Iterator[None]:
    """Code the named weights anew wherever the model reads them."""
    done: list[nn.Module] = []
    try:
        for name, part in parts.items():
            module = model.get_submodule(name.rpartition(".")[0])
            parametrize.register_parametrization(module, "weight", part, unsafe=True)
            done.append(module)
        yield
    finally:
        for module in done:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def quantizers_for(settings: Settings) -> dict[str, Quantizer]:
    """Return the quantizer of each matrix whose scales are trained."""
    found = {}
    for name, (coder, setting) in settings.items():
        if not isinstance(coder, Anew):
            found[name] = Lsq.quantizer(setting.bits) if isinstance(coder, Lsq) else LEARNED[coder.name](setting.bits)
    return found


class Trainer(Workbench):
    """A workbench whose points are trained on the grids of their codes.

    Parameters
    ----------
    bench : Workbench
        With the original.
    steps : int
        Of distillation, for every point.
    """

    def __init__(self, bench: Workbench, *, steps: int = STEPS) -> None:
        self.__dict__.update(bench.__dict__)
        self.steps = steps
        measured = {text for probe in self.probes for group in probe.texts for text in group}
        texts = [text for text in self.task.train if text not in measured]
        random.Random(0).shuffle(texts)
        self.texts = texts[: max(2, steps * self.recipe.batch)]
        self.outputs = teacher_outputs(self.network, self.texts, self.recipe)

    @property
    def recipe(self) -> Recipe:
        """The distillation, with one learning rate for every width, so that how far weights move can be compared."""
        warmup, every = min(30, max(1, self.steps // 5)), max(self.steps // 5, 10)
        return replace(recipe_for("faster", 1.0), steps=self.steps, warmup=warmup, evaluate_every=every, patience=0)

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself."""
        return {**super().record(), "steps": self.steps}

    def experiment(self) -> str:
        """Return what is done, in words."""
        scored = "pairs held out of STS-B train" if "validation" in self.task.name else "STS-B dev"
        return EXPERIMENT.format(model=self.network.name, steps=self.steps, texts=len(self.texts), scored=scored)

    def train(self, arm: Arm, point: Point, codes: Codes) -> tuple[Network, Codes]:
        """Return a network trained on the grids of codes, and its codes."""
        settings = self.settings(arm, point.level)
        student = replace(self.network, model=copy.deepcopy(self.network.model))
        quantizers = quantizers_for(settings)
        anew = {
            name: Recoded(coder, self.statistics[name], setting)
            for name, (coder, setting) in settings.items()
            if isinstance(coder, Anew)
        }
        learned = {name: code for name, code in codes.items() if name not in anew}
        with coded_anew(student.model, anew), straight_through(student.model, learned, quantizers) as grids:
            recover(student, self.network, self.texts, self.recipe, seed=point.seed, outputs=self.outputs)
            learned = trained_codes(learned, grids)
        made = fit_scales(student, learned, math.inf, quantizers=quantizers)
        for name, part in anew.items():
            made[name] = part.coder.code(weight_of(student, name), part.statistics, part.setting)
        return student, made

    def measure(self, arm: Arm, point: Point, observe: Observe | None = None) -> Outcome:
        """Run one point: code, train, code anew, score."""
        started = time.monotonic()
        codes = self.codes(arm, point.level, point.seed)
        plain = with_codes(self.network, codes)
        before = [measure_network(probe, plain) for probe in self.probes]
        student, made = self.train(arm, point, codes)
        seconds = time.monotonic() - started
        found = _Finished(self, student, made).measure(arm, point, observe)
        moved, size = 0.0, 0.0
        for name, weight in self.weights.items():
            moved += float(np.abs(weight_of(student, name) - weight).sum(dtype=np.float64))
            size += float(np.abs(weight).sum(dtype=np.float64))
        levels = max(len(np.unique(code.integers)) for code in made.values() if isinstance(code, Uniform))
        return {
            **found,
            "before": float(np.average(before, weights=[len(probe.texts[0]) for probe in self.probes])),
            "moved": moved / size,
            "levels": levels,
            "seconds": {**found["seconds"], "training": seconds, "all": time.monotonic() - started},
        }


class _Finished(Workbench):
    """The workbench with a trained network in the place of the original, and its codes."""

    def __init__(self, bench: Trainer, network: Network, made: Codes) -> None:
        self.__dict__.update(bench.__dict__)
        self.network, self.made = network, made

    def codes(self, arm: Arm, level: float, seed: int) -> Codes:
        """Return the codes that were trained."""
        return self.made


def weight_of(network: Network, name: str) -> Floats:
    """Return a weight of a network."""
    found: Floats = network.model.get_parameter(name).detach().numpy()
    return found


def run_trained(
    claim: Claim, bench: Trainer, out: Path, *, seeds: Sequence[int] = SEEDS, quick: bool = False, say: Say = print
) -> str:
    """Train and measure the points that ``out`` lacks, each on disk before the next begins, and return the verdict.

    Raises
    ------
    BadInput
        If ``out`` holds points that were made otherwise.
    IsthmusError
        At the end, if some points could not be measured.
    """
    wanted, arms = set(claim.points(seeds)), {arm.label: arm for arm in claim.arms}
    head = {
        "slug": claim.slug, "kind": "coding", "claim": claim.claim,
        "experiment": bench.experiment() + claim.experiment, "record": bench.record(), "original": bench.original,
    }  # fmt: skip
    ledger = Ledger(out, head, lambda found: claim.judge(found, complete={point_of(one) for one in found} >= wanted))
    for outcome in ledger.outcomes:
        if outcome["arm"] not in arms or arms[outcome["arm"]].spec(outcome["level"]) != outcome["spec"]:
            raise BadInput(f"{out}: its points of {outcome['arm']} were coded otherwise; move the file away")
    there = {point_of(outcome) for outcome in ledger.outcomes}
    missing = [point for point in claim.points(seeds, quick=quick) if point not in there]
    say(f"{claim.slug}: {len(missing)} points of {bench.steps} steps, {len(there)} there already")
    failed: list[str] = []
    for number, point in enumerate(missing):
        title = f"[{number + 1}/{len(missing)}] {point.arm} at {point.level:g}, seed {point.seed}"
        try:
            found = bench.measure(arms[point.arm], point, claim.observe)
        except IsthmusError as error:
            failed.append(f"{title}: {error}")
            say(f"{title}: FAILED {error}")
            continue
        ledger.add(found)
        say(
            f"{title}: {found['bytes'] / 1e6:.2f} MB, {found['before']:.4f} -> {found['nats']:.4f} nats, relative "
            f"{found['relative']:.4f}, {found['seconds']['all']:.0f} s"
        )
    ledger.write()
    concluded = ledger.conclude(ledger.outcomes)
    for part in concluded["parts"]:
        say(f"{part['name']}: {part['verdict']} ({part['summary']})")
    say(f"{claim.slug}: {concluded['verdict']}")
    if failed:
        raise IsthmusError(f"{claim.slug}: {len(failed)} points could not be measured; the first: {failed[0]}")
    return str(concluded["verdict"])


def every_width(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): the same training serves all five widths."""
    rule = (
        "at each of the five widths and in every seed, what is trained loses fewer nats than the codes it began with, "
        "and no matrix has more levels than the width; mixed: at some widths"
    )
    found = of_arm(outcomes, OURS)
    passed = [
        all(run["nats"] < run["before"] and run["levels"] <= _COUNTS[bits] for run in runs)
        for bits, runs in found.items()
    ]
    texts = [
        f"{bits:g} bits {_mean(runs, 'before'):.3g} to {_mean(runs, 'nats'):.3g} nats" for bits, runs in found.items()
    ]
    return part_of("one way for all widths", rule, share_passed(passed), "; ".join(texts))


def drift(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): weights move further at two bits and below."""
    rule = (
        "the mean magnitude of what weights moved by, over that of the weights, is at each of 2, 1.58 and 1 bits at "
        f"least {LARGER:g} times what it is at 3 or 4 bits; mixed: larger at each, by less; at one learning rate"
    )
    moved = {bits: _mean(runs, "moved") for bits, runs in of_arm(outcomes, OURS).items()}
    few = [value for bits, value in moved.items() if bits <= FEW]
    many = [value for bits, value in moved.items() if bits > FEW]
    verdict = UNTESTED
    if few and many:
        ratio = min(few) / max(many)
        verdict = HOLDS if ratio >= LARGER else MIXED if ratio > 1 else FAILS
    text = ", ".join(f"{value:.1%} at {bits:g} bits" for bits, value in moved.items())
    return part_of("how far weights move", rule, verdict, text, moved={f"{bits:g}": at for bits, at in moved.items()})


def own_form(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): each width's own quantizer against one shared form, at equal bytes."""
    rule = (
        "at 2 and at 1.58 bits, the curve of the own quantizers is at the bytes of plain LSQ rounding ahead of it in "
        "score or in nats, by more than twice the spread, and behind in neither; does not hold: behind at both; "
        "mixed: otherwise"
    )
    verdicts, texts, figures = [], [], {}
    for bits in SHARED_AT:
        theirs = [one for one in outcomes if one["arm"] == SHARED and one["level"] == bits]
        found = compare([*_ours(outcomes), *theirs], OURS, SHARED)
        verdicts.append(UNTESTED if found is None else ahead(found))
        if found is not None:
            texts.append(f"{bits:g} bits {in_words(found)}")
            figures[f"{bits:g}"] = found
    return part_of("own quantizers against one form", rule, combined(verdicts), "; ".join(texts), **figures)


def trade_off(outcomes: Sequence[Outcome]) -> Part:
    """Decide (d): quality against bytes; the widths between are better than a mixture of the ends."""
    rule = (
        "at the bytes of 3, 2 and 1.58 bits, each is ahead of the straight line from 1 bit to 4 bits in score or in "
        "nats (a network in part of the one, in part of the other), by more than twice the spread, and behind in "
        "neither; mixed: some are"
    )
    ours = _ours(outcomes)
    ends = [{**one, "arm": ENDS} for one in ours if one["level"] in (WIDTHS[0], WIDTHS[-1])]
    passed, texts, figures = [], [], {}
    for bits in WIDTHS[1:-1]:
        found = compare([*(one for one in ours if one["level"] == bits), *ends], OURS, ENDS)
        if found is not None and len({one["level"] for one in ends}) == 2:
            passed.append(ahead(found) == HOLDS)
            texts.append(f"{bits:g} bits {in_words(found)}")
            figures[f"{bits:g}"] = found
    best = ", ".join(f"{bits:g}" for bits in pareto(ours))
    text = "; ".join([*texts, f"no other width is smaller and better than {best} bits"]) if texts else ""
    return part_of("quality against bytes", rule, share_passed(passed), text, **figures)


def pareto(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the levels of an arm that no other beats with fewer bytes and a better score, means over seeds."""
    at: dict[float, list[Outcome]] = {}
    for one in outcomes:
        at.setdefault(one["level"], []).append(one)
    means = {level: (_mean(runs, "bytes"), -_mean(runs, "relative")) for level, runs in at.items()}
    return [
        level
        for level, own in means.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in means.values())
    ]


def in_words(found: Mapping[str, Any]) -> str:
    """Return a comparison in words."""
    return (
        f"{100 * found['gap']:+.2f} ± {100 * found['spread']:.2f} points, {math.exp(found['nats']):.2f} times the nats "
        f"(within a factor of {math.exp(found['nats_spread']):.2f})"
    )


def _ours(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one["arm"] == OURS]


def _mean(runs: Sequence[Outcome], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


CLAIM = Claim(
    slug="paretoq",
    claim=(
        "One way of training serves 4, 3, 2, 1.58 and 1 bits; between 3 and 2 bits weights begin to move far from "
        "where they were; the quantizer that suits a width is better than one form for all at 2 bits and below; "
        "1.58, 2 and 3 bits are a better use of bytes than 4 bits and 1."
    ),
    experiment=(
        "Scales, one a row, start at the least squared error and are trained by the gradients of LSQ, also with one "
        "form for every width (`lsq`). One network: what larger networks of fewer bits do is not tested."
    ),
    arms=(
        Arm(OURS, WIDTHS, lambda bits: (ParetoQ(fit=True), Setting(bits)), draws=True),
        Arm(SHARED, SHARED_AT, lambda bits: (Lsq(), Setting(bits)), draws=True),
    ),
    parts=lambda outcomes: [every_width(outcomes), drift(outcomes), own_form(outcomes), trade_off(outcomes)],
)


def run(
    bench: Workbench,
    out: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    quick: bool = False,
    cache: Path | None = None,
    say: Say = print,
) -> str:
    """Train and measure the points that ``out`` lacks, and return the verdict; nothing is kept in ``cache``."""
    return run_trained(CLAIM, Trainer(bench, steps=QUICK if quick else STEPS), out, seeds=seeds, quick=quick, say=say)
