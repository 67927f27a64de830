"""Gaussian gates and their information: the quantities of the variational information bottleneck.

A unit's output is multiplied by ``z = mu + sigma * noise``. The information that passes is bounded by the divergence
from the sparsity-inducing log-uniform prior, ``KL = 1/2 log(1 + mu**2 / sigma**2)`` nats a unit (Dai et al. 2018,
"Compressing neural networks using the variational information bottleneck", equation 10; VTrans uses it unchanged).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.cost.rates import presence
from isthmus.relevance.statistics import Scores
from isthmus.sites import LAYERS, Site

START_LOG_VARIANCE = -4.6
"""A tenth of the signal: every gate starts open, with enough noise to feel the task."""
START_SPREAD = 6.0
OPEN_AT = 0.0
"""Log signal-to-noise ratio at which a gate counts as half open."""


@dataclass
class GateState:
    """Trainable gates of all sites: ``mean``, ``log_variance`` and the mask ``open``, each of shape ``(units,)``."""

    mean: dict[str, Tensor]
    log_variance: dict[str, Tensor]
    open: dict[str, Tensor]


def new_gates(sites: Sequence[Site], squares: Mapping[str, Scores]) -> GateState:
    """Return open gates for every site, in order, each with the noise that the task bears at first sight.

    For small noise the loss grows by ``F sigma**2 / 2`` with a unit's Fisher information ``F``; together with the price
    ``b`` of information that is least at ``sigma**2 = b / F``. ``b`` is set so that a site's gates begin at
    ``START_LOG_VARIANCE`` on average; none begins further than ``START_SPREAD`` from it. The training takes it from
    there, for what units carry together is not in ``F``.
    """
    mean = {site.name: torch.ones(site.units, requires_grad=True) for site in sites}
    log_variance = {}
    for site in sites:
        found = torch.as_tensor(squares.get(site.name, np.ones(site.units)), dtype=torch.float32)
        fisher = (found + 1e-6 * found.mean() + 1e-30).log()
        spread = (fisher.mean() - fisher).clamp(-START_SPREAD, START_SPREAD)
        log_variance[site.name] = (START_LOG_VARIANCE + spread).requires_grad_(True)
    return GateState(mean, log_variance, {site.name: torch.ones(site.units) for site in sites})


def log_signal_to_noise(gates: GateState, name: str) -> Tensor:
    """Return ``log(mu**2 / sigma**2)``, shape ``(units,)``."""
    return torch.log(gates.mean[name].square() + 1e-8) - gates.log_variance[name]


def information(gates: GateState, name: str) -> Tensor:
    """Return the nats that pass each unit's gate, ``1/2 log(1 + mu**2/sigma**2)``, shape ``(units,)``."""
    return 0.5 * F.softplus(log_signal_to_noise(gates, name)) * gates.open[name]


def openness(gates: GateState, name: str) -> Tensor:
    """Return how far each gate is open, a smooth step of its signal-to-noise ratio, shape ``(units,)``."""
    return torch.sigmoid(log_signal_to_noise(gates, name) - OPEN_AT) * gates.open[name]


def sample(gates: GateState, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw one multiplier a unit: ``mu + sigma * noise``, zero where the gate has been closed for good."""
    values = {}
    for name, mean in gates.mean.items():
        noise = torch.randn(mean.shape, generator=generator)
        values[name] = (mean + torch.exp(0.5 * gates.log_variance[name]) * noise) * gates.open[name]
    return values


def expected_counts(
    gates: GateState, sites: Sequence[Site], vocabulary: Tensor | None, pressures: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Return how many units of every site stay, softly, and each layer's presence, as scalars with gradients.

    ``pressures`` scale the gradients that reach the gates of a kind of site, not their values; 1 where nothing is said.
    """
    pressures = pressures or {}
    counts: dict[str, Tensor] = {}
    for site in sites:
        if site.name in gates.mean:
            count = openness(gates, site.name).sum().clamp(min=float(site.minimum))
            counts[site.name] = _pressed(count, pressures.get(site.kind, 1.0))
    # Where the layers are no site they all stay.
    counts.update({presence(site.layer): torch.ones(()) for site in sites if site.layer is not None})
    for index, share in enumerate(openness(gates, LAYERS) if LAYERS in gates.mean else ()):
        counts[presence(index)] = _pressed(share, pressures.get("layers", 1.0))
    if vocabulary is not None:
        counts["vocabulary"] = vocabulary
    return counts


def _pressed(count: Tensor, pressure: float) -> Tensor:
    return count if pressure == 1 else count.detach() + pressure * (count - count.detach())


def close_lost(gates: GateState, sites: Sequence[Site], below: float) -> int:
    """Close for good the gates whose log signal-to-noise ratio fell below ``below``; return how many are closed.

    As many gates as a site must keep stay open, the most informative first.
    """
    closed = 0
    for site in sites:
        ratio = log_signal_to_noise(gates, site.name).detach()
        lost = ratio < below
        # A gate that has been closed cannot be among those that stay, however far its mean drifts afterwards.
        still = ratio.masked_fill(gates.open[site.name] == 0, -torch.inf)
        best = still.topk(min(site.minimum, site.units)).indices
        lost[best] = False
        gates.open[site.name] = torch.where(lost, torch.zeros(()), gates.open[site.name])
        closed += int((gates.open[site.name] == 0).sum())
    return closed
