"""The deep variational information bottleneck: a layer that adds noise, and says how much still passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput


@dataclass(frozen=True)
class Passed:
    """What a bottleneck lets through.

    Parameters
    ----------
    sample : Tensor, shape ``(batch, ..., width)``
    rate : Tensor, shape ``(batch, ...)``
        Nats: the divergence of each code from the prior, an upper bound on the mutual information with the input.
    by_unit : Tensor, shape ``(batch, ..., width)``
        The same, unit by unit.
    """

    sample: Tensor
    rate: Tensor
    by_unit: Tensor


class VariationalBottleneck(nn.Module):
    """A Gaussian code of each input vector, with a standard normal prior.

    Alemi et al. 2017 (arXiv 1612.00410, equation 17): train on the task's loss plus ``beta`` times the mean rate. In
    evaluation mode the sample is the mean.

    Parameters
    ----------
    features : int
        The width of what comes in.
    width : int
        Of the code.

    Raises
    ------
    BadInput
        If a width is below 1.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        if min(features, width) < 1:
            raise BadInput(f"bottleneck: {features} features to {width} units; give 1 or more of both")
        self.encode = nn.Linear(features, 2 * width)

    def forward(self, states: Tensor) -> Passed:
        """Return a sample of the code of each vector of ``states``, shape ``(batch, ..., features)``."""
        mean, raw = self.encode(states).chunk(2, dim=-1)
        # Softplus keeps the noise's size above zero without a gradient that grows without bound.
        deviation = nn.functional.softplus(raw) + 1e-6
        sample = mean + deviation * torch.randn_like(deviation) if self.training else mean
        by_unit = gaussian_rate(mean, deviation)
        return Passed(sample, by_unit.sum(-1), by_unit)


def gaussian_rate(mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the divergence of normal distributions from the standard normal one, in nats, elementwise."""
    return (mean.square() + deviation.square() - 1) / 2 - deviation.log()


def closed_units(by_unit: Tensor, *, least: float = 0.01) -> Tensor:
    """Return which units of a code carry less than ``least`` nats in the mean: a bottleneck's dead ones.

    Parameters
    ----------
    by_unit : Tensor, shape ``(batch, ..., width)``

    Returns
    -------
    Tensor, shape ``(width,)``, bool
    """
    return by_unit.flatten(0, -2).mean(0) < least
