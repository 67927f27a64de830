"""Relevance by variational information bottleneck: noisy gates trained under the budget.

VTrans (Dutta et al. 2024): Gaussian gates on the residual stream, heads, neurons and layers; the task loss plus the
information that passes the gates plus a constraint on the budget, which tightens step by step while gates whose
signal drowns in noise are closed. Three efforts: ``full`` and ``fast`` train the weights along with the gates
(``fast`` on 3 % of the texts), ``faster`` trains the gates alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import IsthmusError
from isthmus.examples import Example, size_of
from isthmus.memory import EVERY, give_back
from isthmus.network import Network, encode, low_precision, outputs
from isthmus.relevance.bottleneck_gates import (
    close_lost,
    expected_counts,
    information,
    new_gates,
    sample,
)
from isthmus.relevance.estimator import LASTING, Calibration, Curve, Relevance
from isthmus.relevance.probe import gated_sites
from isthmus.relevance.statistics import Statistics
from isthmus.sites import VOCABULARY, gated
from isthmus.tasks.divergence import divergence

GATE_TOKENS = 64
"""Texts are cut to this many tokens while gates are trained."""
MICRO_TEXTS = 16
MICRO_CHARACTERS = 4096
"""Texts in a batch times the characters of its longest: about 1,000 tokens of English."""
PIXELS = 64
"""Pixels of an image that count as a character does: a patch of 16 by 16 as much as four, which make a token."""


@dataclass(frozen=True)
class Schedule:
    """How long and how hard the gates are trained.

    Parameters
    ----------
    steps : int
        Optimizer steps.
    share : float
        Share of the texts that is used.
    weight_rate : float
        Learning rate of the weights; zero trains the gates alone.
    gate_rate : float
        Learning rate of the gates' means and log variances where half or more of the budget's currency is to go; less
        where less is, see ``pace``.
    ramp : float
        Share of the steps over which the limit falls from what the original costs to the budget.
    layer_pressure : float
        How hard the budget presses on the layers' gates. A layer that is passed by saves most per gate, so layers
        would go first and the gates within them never be decided. Not tested apart.
    """

    steps: int
    share: float = 1.0
    weight_rate: float = 0.0
    gate_rate: float = 0.06
    layer_rate: float = 0.02
    layer_pressure: float = 0.3
    batch: int = 64
    ramp: float = 0.5
    information_weight: float = 2e-5
    multiplier_rate: float = 0.1
    penalty: float = 20.0
    close_every: int = 10
    close_below: float = -2.0


SCHEDULES = {
    "none": Schedule(steps=150),  # weights stay as they are; gates alone are trained
    "faster": Schedule(steps=150),
    # Gradients of weights keep more activations: fewer texts in a batch hold them to the same memory.
    "fast": Schedule(steps=300, share=0.03, weight_rate=5e-5, batch=40),
    "full": Schedule(steps=800, weight_rate=5e-5, gate_rate=0.03, batch=40),
}


def pace(limits: Mapping[str, float], original: Mapping[str, float]) -> float:
    """Return how fast gates move, 1 where half or more is to go.

    Gates start where noise is best for each alone. The less is to go, the less matters what units carry together, and
    the more of what gates do is chance: of all-MiniLM-L6-v2, as ``python -m claims --validation`` does, 0.10 nats are
    lost before recovery at 75 % of the parameters at the full rate, 0.09 at a third of it; at 50 % both lose 0.57.
    """
    gone = max((1 - limit / original[currency] for currency, limit in limits.items()), default=1.0)
    return float(min(1.0, 2 * max(gone, 0.0)) ** 1.5)


@dataclass(frozen=True)
class VariationalBottleneck:
    """Gaussian gates trained under the budget; relevance is the information that passes."""

    name: str = "vib"
    slug: str | None = "vtrans"
    needs: frozenset[str] = frozenset({"gradients"})
    trains: bool = True
    schedule: Schedule | None = None

    def scores(self, calibration: Calibration, statistics: Statistics) -> Relevance:
        """Train gates and return the information that passes each, in nats, shape ``(units,)`` a site.

        It is averaged over the training, in which the budget tightens: the longer a unit is held open, the more it
        carries. (At the end of a tight budget most gates of a site are closed, and nothing would order them.) What a
        site's units are worth beside those of another is measured afterwards, as for every estimator.

        Raises
        ------
        IsthmusError
            If the loss is no longer finite.
        """
        schedule = self.schedule or SCHEDULES[calibration.effort]
        return _Training(calibration, schedule, statistics).run()


class _Training:
    """One training of gates; holds what its steps share."""

    def __init__(self, calibration: Calibration, schedule: Schedule, statistics: Statistics) -> None:
        self.calibration = calibration
        self.schedule = schedule
        self.sites = gated_sites(calibration.sites)
        self.gates = new_gates(self.sites, statistics.squares)
        self.generator = torch.Generator().manual_seed(calibration.seed)
        self.student = self._student(calibration.network)
        self.batches = self._batches()
        self.vocabulary = _SoftVocabulary(calibration) if len(calibration.vocabulary) else None
        self.multipliers = dict.fromkeys(calibration.limits, 0.0)
        moved = pace(calibration.limits, calibration.original)
        self.passed = {site.name: torch.zeros(site.units) for site in self.sites}
        self.points: dict[str, list[tuple[int, float]]] = {"divergence": [], "expected rate": [], "open gates": []}
        groups = [
            {
                "params": [self.gates.mean[site.name], self.gates.log_variance[site.name]],
                # One layer's gate moves as much as all its neurons do; it must not run ahead of them.
                "lr": moved * (schedule.layer_rate if site.kind == "layers" else schedule.gate_rate),
            }
            for site in self.sites
        ]
        if self.vocabulary is not None:
            groups.append({"params": [self.vocabulary.logit], "lr": moved * schedule.gate_rate})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        given = {id(parameter) for parameter in calibration.network.model.parameters()}
        weights = [p.requires_grad_(True) for p in self.student.model.parameters() if id(p) not in given]
        self.weights = torch.optim.AdamW(weights, lr=schedule.weight_rate, weight_decay=0) if weights else None

    def _student(self, network: Network) -> Network:
        model = network.model
        if self.schedule.weight_rate > 0:
            # The word embeddings are half of a small encoder, of which a batch touches a few rows: not worth a copy
            # with its moments in memory.
            tables = [
                model.get_parameter(part.parameter)
                for site in self.calibration.sites
                if site.name == VOCABULARY
                for part in site.slices
            ]
            model = copy.deepcopy(model, {id(table): table for table in tables})
        return network.with_model(model)

    def _batches(self) -> list[list[Example]]:
        examples = list(self.calibration.examples)
        order = torch.randperm(len(examples), generator=self.generator).tolist()
        count = max(int(len(examples) * self.schedule.share), min(len(examples), 2 * self.schedule.batch))
        chosen = [examples[index] for index in order[:count]]
        # Texts of like length share a batch, which halves the padding; the batches themselves stay shuffled. Batches of
        # long texts hold fewer of them, which bounds the memory that activations take.
        window = self.schedule.batch * 16
        batches: list[list[Example]] = []
        wanted = self.calibration.network.images
        pixels = 0 if wanted is None else wanted.height * wanted.width // PIXELS

        def size(example: Example) -> int:
            return max(size_of(example), pixels, 1)

        for start in range(0, count, window):
            part = sorted(chosen[start : start + window], key=size)
            while part:
                many = max(MICRO_TEXTS, min(self.schedule.batch, MICRO_CHARACTERS // size(part[0])))
                while many > MICRO_TEXTS and size(part[min(many, len(part)) - 1]) * many > MICRO_CHARACTERS:
                    many -= 1
                many -= many % MICRO_TEXTS  # few distinct shapes: kernels are compiled once for each
                batches.append(part[:many])
                part = part[many:]
        batches = [batch for batch in batches if len(batch) >= min(MICRO_TEXTS, count)] or batches
        shuffle = torch.randperm(len(batches), generator=self.generator).tolist()
        return [batches[index] for index in shuffle]

    def run(self) -> Relevance:
        """Train to the end of the schedule and return what passed."""
        network = self.calibration.network
        frozen = [p for p in network.model.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            for step in range(self.schedule.steps):
                self._step(step)
                if step % EVERY == 0:
                    give_back()
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        return self._relevance()

    def _step(self, step: int) -> None:
        schedule, network = self.schedule, self.calibration.network
        examples = self.batches[step % len(self.batches)]
        limit = min(network.max_length, GATE_TOKENS)
        shorter = replace(network, max_length=limit - limit % 8 if limit >= 8 else limit)
        inputs = encode(shorter, examples, multiple=8 if limit >= 8 else None)
        with torch.no_grad(), low_precision():
            reference = outputs(network, inputs).float()
        values = sample(self.gates, self.generator)
        with gated(self.student.model, self.sites, values), low_precision():
            output = outputs(self.student, inputs).float()
        loss = divergence(output, reference, network.pooling)
        total = loss
        if self.schedule.weight_rate > 0 and not network.predicts:
            total = total + 2 * (1 - F.cosine_similarity(output, reference).mean())
        rows = None
        if self.vocabulary is not None:
            rows = self.vocabulary.rows()
            total = total + LASTING[VOCABULARY] * self.vocabulary.distortion(rows)
        counts = expected_counts(self.gates, self.sites, rows, self._pressures())
        nats = torch.stack([information(self.gates, site.name).sum() for site in self.sites]).sum()
        total = total + schedule.information_weight * nats + self._constraint(counts, step)
        if not torch.isfinite(total):
            raise IsthmusError(f"gates: the loss is not finite at step {step}; check the examples, or lower the effort")
        self.optimizer.zero_grad(set_to_none=True)
        if self.weights is not None:
            self.weights.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.weights is not None:
            self.weights.step()
        for site in self.sites:
            self.passed[site.name] += information(self.gates, site.name).detach() / schedule.steps
        if (step + 1) % schedule.close_every == 0:
            closed = close_lost(self.gates, self.sites, schedule.close_below)
            self._note(step, float(loss.detach()), counts, closed)

    def _pressures(self) -> dict[str, float]:
        """Return how hard the budget presses on each kind of site: what lasts is spared, as allocation does."""
        return {**{kind: 1 / weight for kind, weight in LASTING.items()}, "layers": self.schedule.layer_pressure}

    def _constraint(self, counts: dict[str, Tensor], step: int) -> Tensor:
        """Augmented Lagrangian of every limit, each as a share of the original's rate."""
        schedule = self.schedule
        done = min(1.0, (step + 1) / (schedule.ramp * schedule.steps))
        total = torch.zeros(())
        for currency, limit in self.calibration.limits.items():
            original = self.calibration.original[currency]
            target = 1 + (limit / original - 1) * done
            excess = self.calibration.rates[currency](counts) / original - target
            multiplier = self.multipliers[currency]
            total = total + multiplier * excess + schedule.penalty * F.relu(excess).square()
            self.multipliers[currency] = max(0.0, multiplier + schedule.multiplier_rate * float(excess.detach()))
        return total

    def _note(self, step: int, loss: float, counts: dict[str, Tensor], closed: int) -> None:
        units = sum(site.units for site in self.sites)
        rates = [
            float(self.calibration.rates[currency](counts).detach()) / self.calibration.original[currency]
            for currency in self.calibration.limits
        ]
        self.points["divergence"].append((step + 1, loss))
        self.points["expected rate"].append((step + 1, max(rates, default=1.0)))
        self.points["open gates"].append((step + 1, (units - closed) / units))
        self.calibration.progress("gates", step + 1, self.schedule.steps, f"{loss:.3f} nats, {rates[0]:.0%}")

    def _relevance(self) -> Relevance:
        sites = self.sites
        rows = None if self.vocabulary is None else self.vocabulary.rows().detach()
        with torch.no_grad():
            counts = expected_counts(self.gates, sites, rows)
            passed = {site.name: float(information(self.gates, site.name).sum()) for site in sites}
        scores = {site.name: self.passed[site.name].double().numpy() for site in sites}
        units = {"expected rate": "share", "open gates": "share", "divergence": "nats"}
        curves = tuple(Curve(f"gates: {name}", units[name], tuple(points)) for name, points in self.points.items())
        details = {
            "multipliers": dict(self.multipliers),
            "expected counts": {name: float(value) for name, value in counts.items()},
            "information": passed,
        }
        return Relevance("vib", scores, curves, details)


class _SoftVocabulary:
    """How many rows of the vocabulary stay, as a trainable number whose distortion is read from the measured curve."""

    def __init__(self, calibration: Calibration) -> None:
        site = next(site for site in calibration.sites if site.name == VOCABULARY)
        self.units, self.minimum = float(site.units), float(max(site.minimum, len(site.fixed)))
        finite = calibration.vocabulary[np.isfinite(calibration.vocabulary)]
        lost = np.concatenate([[0.0], np.cumsum(np.sort(finite))])
        self.lost = torch.as_tensor(lost, dtype=torch.float32)
        self.logit = torch.tensor(4.0, requires_grad=True)

    def rows(self) -> Tensor:
        """Return the number of rows that stay, a scalar with gradient."""
        return self.minimum + (self.units - self.minimum) * torch.sigmoid(self.logit)

    def distortion(self, rows: Tensor) -> Tensor:
        """Return the nats lost when ``rows`` rows stay, interpolated between whole rows."""
        removed = (self.units - rows).clamp(0, len(self.lost) - 1.001)
        low = removed.detach().floor().long()
        return self.lost[low] + (removed - low) * (self.lost[low + 1] - self.lost[low])
