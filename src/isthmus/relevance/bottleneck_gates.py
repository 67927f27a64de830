"""Gaussian gates and their information: the quantities of the variational information bottleneck.

A unit's output is multiplied by ``z = mu + sigma * noise``. The information that passes is bounded by the divergence
from the sparsity-inducing log-uniform prior, ``KL = 1/2 log(1 + mu**2 / sigma**2)`` nats a unit (Dai et al. 2018,
"Compressing neural networks using the variational information bottleneck", equation 10; VTrans uses it unchanged).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.cost.rates import presence
from isthmus.sites import LAYERS, Site

START_LOG_VARIANCE = -4.6
"""A tenth of the signal: every gate starts open, with enough noise to feel the task."""
OPEN_AT = 0.0
"""Log signal-to-noise ratio at which a gate counts as half open."""
THRESHOLD_NATS = 0.5 * 0.6931471805599453
"""The information of a half-open gate."""


@dataclass
class GateState:
    """Trainable gates of all sites: ``mean``, ``log_variance`` and the mask ``open``, each of shape ``(units,)``."""

    mean: dict[str, Tensor]
    log_variance: dict[str, Tensor]
    open: dict[str, Tensor]


def new_gates(sites: Sequence[Site]) -> GateState:
    """Return open gates for every site, in order."""
    mean = {site.name: torch.ones(site.units, requires_grad=True) for site in sites}
    log_variance = {site.name: torch.full((site.units,), START_LOG_VARIANCE, requires_grad=True) for site in sites}
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
    gates: GateState, sites: Sequence[Site], vocabulary: Tensor | None, layer_pressure: float = 1.0
) -> dict[str, Tensor]:
    """Return how many units of every site stay, softly, and each layer's presence, as scalars with gradients.

    ``layer_pressure`` scales the gradient that reaches the layers' gates, not their value. A layer that is passed by
    saves most per gate, so layers would go first and the gates within them never be decided. That holding them back
    gives better networks after recovery has not been tested apart.
    """
    counts: dict[str, Tensor] = {}
    for site in sites:
        if site.name in gates.mean:
            counts[site.name] = openness(gates, site.name).sum().clamp(min=float(site.minimum))
    for index, share in enumerate(openness(gates, LAYERS)):
        counts[presence(index)] = share.detach() + layer_pressure * (share - share.detach())
    if vocabulary is not None:
        counts["vocabulary"] = vocabulary
    return counts


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


def prices(gradients: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Tensor]:
    """Return what one unit of each site is worth at the margin, in nats: a scalar a site, ``(units,)`` for layers."""
    found = {}
    for site in sites:
        if site.name == LAYERS:
            found[site.name] = torch.stack([gradients[presence(index)] for index in range(site.units)]).clamp(min=0)
        elif site.name in gradients:
            found[site.name] = gradients[site.name].clamp(min=0)
    return found
