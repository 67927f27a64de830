"""Trained codes: a workbench whose points are trained on the grids of their codes before they are measured."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from claims.coding import Arm, Observe, Point, Settings, Workbench
from claims.common import STEPS, Outcome
from isthmus.bottlenecks.bits.fake_quantize import Quantizer
from isthmus.bottlenecks.bits.grid import covering, fitted, groups, peaks, spread
from isthmus.bottlenecks.coder import Coder, Floats, MatrixStatistics, Setting
from isthmus.flow.coding import LEARNED, Codes, fit_scales
from isthmus.flow.efforts import coding_recipe
from isthmus.network import Network
from isthmus.recovery.recipe import Recipe
from isthmus.recovery.straight import straight_through, trained_codes
from isthmus.recovery.teacher import teacher_outputs
from isthmus.recovery.train import recover
from isthmus.relevance.probe import measure_network
from isthmus.storage.coded import Uniform, decode
from isthmus.storage.holders import with_codes
from isthmus.storage.rounding import Through

QUICK = 20
"""Steps of a quick run."""
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
        return tuple(Setting(bits) for bits in (4.0, 3.0, 2.0, 1.58))

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
        measured = {text for probe in self.probes for group in probe.examples for text in group}
        texts = [text for text in self.task.train if text not in measured]
        random.Random(0).shuffle(texts)
        self.texts = texts[: max(2, steps * self.recipe.batch)]
        self.outputs = teacher_outputs(self.network, self.texts, self.recipe)

    @property
    def recipe(self) -> Recipe:
        """The distillation, with one learning rate for every width, so that how far weights move can be compared."""
        warmup, every = min(30, max(1, self.steps // 5)), max(self.steps // 5, 10)
        return replace(coding_recipe("faster", 2.0), steps=self.steps, warmup=warmup, evaluate_every=every, patience=0)

    def record(self) -> dict[str, Any]:
        """Return what a point depends on besides itself."""
        return {**super().record(), "steps": self.steps}

    def experiment(self) -> str:
        """Return what is done, in words."""
        scored = "pairs held out of STS-B train" if "validation" in self.task.name else "STS-B dev"
        return EXPERIMENT.format(model=self.network.name, steps=self.steps, texts=len(self.texts), scored=scored)

    def student(self, arm: Arm) -> Network:
        """Return what an arm trains: a copy of the original."""
        return replace(self.network, model=copy.deepcopy(self.network.model))

    def train(self, arm: Arm, point: Point, codes: Codes) -> tuple[Network, Codes]:
        """Return a network trained on the grids of codes, and its codes."""
        settings = self.settings(arm, point.level)
        student = self.student(arm)
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
        plain = with_codes(self.student(arm), codes)
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
            "before": float(np.average(before, weights=[len(probe.examples[0]) for probe in self.probes])),
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
