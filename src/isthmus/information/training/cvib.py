"""Contrastive variational information bottleneck: a network trained beside its own narrowed copy.

The copy is the network seen through gates of a variational bottleneck; both views of one text belong together, those
of two texts do not (Chang et al. 2023, arXiv 2303.02846). What inputs share with labels by chance is discarded by the
copy, and the contrast passes that on to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput, unknown

OPEN = 3.0
"""Log of mean squared over variance at which gates start: almost without noise."""


class InformationGates(nn.Module):
    """Gaussian gates on the last axis of what modules give (Dai et al. 2018, arXiv 1802.10399).

    A unit is multiplied by ``mean + deviation * noise``; ``1/2 ln(1 + mean^2 / deviation^2)`` nats pass it at most
    (their equation 10). In evaluation mode the multiplier is the mean, 0 where less than ``least`` nats pass.

    Parameters
    ----------
    model : nn.Module
    widths : mapping of str to int
        Width of the last axis by path of the module.
    least : float
        Nats below which a gate is closed.

    Raises
    ------
    BadInput
        If there is no module at a path, no path, or a width below 1.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, widths: Mapping[str, int], *, least: float = 0.05) -> None:
        super().__init__()
        known = [name for name, _ in model.named_modules()][1:]
        if not widths:
            raise BadInput("gates: no module is named; give the paths and widths of one or more")
        for path, width in widths.items():
            if path not in known:
                raise unknown("module", path, known)
            if width < 1:
                raise BadInput(f"gates at {path}: width {width}; give 1 or more")
        self.paths, self.least = tuple(widths), least
        # Whoever trains the network must not find it among the parameters of its gates as well.
        self.__dict__["model"] = model
        self.means = nn.ParameterList([nn.Parameter(torch.ones(width)) for width in widths.values()])
        self.logs = nn.ParameterList([nn.Parameter(torch.full((width,), -OPEN)) for width in widths.values()])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gate what the modules give, within the block; the model is as before afterwards."""
        handles = []
        try:
            for place, path in enumerate(self.paths):
                handles.append(self.model.get_submodule(path).register_forward_hook(self._hook(place)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def nats(self) -> Tensor:
        """Return what passes each unit at most, in nats, shape ``(units,)``, with gradients."""
        rates = [self._rate(place) for place in range(len(self.paths))]
        return torch.cat(rates)

    def closed(self) -> dict[str, Tensor]:
        """Return which units of each module are closed, shape ``(width,)``, bool."""
        return {path: (self._rate(place) < self.least).detach() for place, path in enumerate(self.paths)}

    def _rate(self, place: int) -> Tensor:
        return 0.5 * torch.log1p(self.means[place].square() * (-self.logs[place]).exp())

    def _hook(self, place: int) -> Callable[..., Any]:
        def hook(module: nn.Module, _: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            mean, log = self.means[place], self.logs[place]
            if first.shape[-1] != len(mean):
                raise BadInput(f"gates at {self.paths[place]}: {len(mean)} for an output of shape {tuple(first.shape)}")
            if module.training:
                # One draw for all positions of a sample: a unit is noisy as a whole.
                shape = (len(first), *[1] * (first.ndim - 2), len(mean))
                gate = mean + (0.5 * log).exp() * torch.randn(shape, dtype=first.dtype, device=first.device)
            else:
                gate = mean * (self._rate(place) >= self.least)
            gated = first * gate
            return (gated, *output[1:]) if isinstance(output, tuple) else gated

        return hook


@dataclass(frozen=True)
class CvibParts:
    """The loss and what it is made of; each a scalar, in nats.

    Parameters
    ----------
    loss : Tensor
    original, narrowed : Tensor
        Cross-entropy of each view.
    contrast : Tensor
    rate : Tensor
        What passes the gates, summed over units.
    """

    loss: Tensor
    original: Tensor
    narrowed: Tensor
    contrast: Tensor
    rate: Tensor


@dataclass(frozen=True)
class CvibLoss:
    """``CE(original) + CE(narrowed) + contrast_weight * contrast + rate_weight * nats``.

    Parameters
    ----------
    contrast_weight, rate_weight : float
        0 or more.
    temperature : float
        Of the contrast, above 0.

    Raises
    ------
    BadInput
        If a weight is below 0 or the temperature is not above 0.
    """

    contrast_weight: float = 0.1
    rate_weight: float = 1e-4
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if min(self.contrast_weight, self.rate_weight) < 0 or not self.temperature > 0:
            raise BadInput(f"{self}: give weights of 0 or more and a temperature above 0")

    def __call__(self, call: Callable[[], tuple[Tensor, Tensor]], gates: InformationGates, labels: Tensor) -> CvibParts:
        """Return the loss of a batch.

        Parameters
        ----------
        call : callable
            Runs the model on the batch and returns representations, shape ``(batch, width)``, and logits, shape
            ``(batch, classes)``. It is called twice: as the model is, and through the gates.
        gates : InformationGates
        labels : Tensor, shape ``(batch,)``
            Classes.
        """
        states, logits = call()
        with gates.applied():
            narrowed_states, narrowed_logits = call()
        original = nn.functional.cross_entropy(logits, labels)
        narrowed = nn.functional.cross_entropy(narrowed_logits, labels)
        contrast = self_pruning_contrast(states, narrowed_states, temperature=self.temperature)
        rate = gates.nats().sum()
        loss = original + narrowed + self.contrast_weight * contrast + self.rate_weight * rate
        return CvibParts(loss, original, narrowed, contrast, rate)


def self_pruning_contrast(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return how badly two views of each sample are told from other samples, in nats a view (scalar).

    For each view, the cross-entropy of finding the sample's other view among all other samples' views of both kinds, by
    the cosine over a temperature.

    Parameters
    ----------
    first, second : Tensor, shape ``(batch, width)``
        In the same order.

    Raises
    ------
    BadInput
        If they are not of one shape, or of fewer than two samples.
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise BadInput(
            f"views of shapes {tuple(first.shape)} and {tuple(second.shape)}; give (batch, width), 2 or more"
        )
    size = len(first)
    views = nn.functional.normalize(torch.cat([first, second]), dim=1)
    scores = views @ views.T / temperature
    scores = scores.masked_fill(torch.eye(2 * size, dtype=torch.bool, device=scores.device), -torch.inf)
    other = torch.arange(2 * size, device=scores.device).roll(size)
    return nn.functional.cross_entropy(scores, other)
