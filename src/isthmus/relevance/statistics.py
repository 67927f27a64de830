"""Statistics: collected once, in one pass over the probe, and shared by all estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.network import outputs
from isthmus.progress import Progress, silent
from isthmus.relevance.probe import Probe, count_of, gated_sites
from isthmus.sites import Gate, Site, gated
from isthmus.sites.gates import unit_sums
from isthmus.tasks.divergence import TEMPERATURE

Scores = npt.NDArray[np.float64]
MICRO = 16
"""Examples in one gradient: the more gradients, the better the estimate of their square."""


@dataclass(frozen=True)
class Statistics:
    """Per site, arrays of shape ``(units,)``.

    ``activations``: mean square of what passes a unit's gate. ``gradients``: mean absolute derivative of the loss by a
    unit's gate. ``squares``: the mean of that derivative squared, summed over examples (the Fisher information).
    """

    activations: Mapping[str, Scores] = field(default_factory=dict)
    gradients: Mapping[str, Scores] = field(default_factory=dict)
    squares: Mapping[str, Scores] = field(default_factory=dict)


def collect(
    probe: Probe, sites: Sequence[Site], needs: frozenset[str], *, seed: int = 0, progress: Progress = silent
) -> Statistics:
    """Collect the statistics named in ``needs`` (``activations``, ``gradients``)."""
    open_sites = gated_sites(sites)
    activations = _activations(probe, open_sites) if "activations" in needs else {}
    gradients: dict[str, Scores] = {}
    squares: dict[str, Scores] = {}
    if "gradients" in needs:
        gradients, squares = gradients_at(probe, open_sites, seed, progress)
    return Statistics(activations, gradients, squares)


def _activations(probe: Probe, sites: Sequence[Site]) -> dict[str, Scores]:
    totals: dict[str, Tensor] = {site.name: torch.zeros(site.units, dtype=torch.float64) for site in sites}
    mask: list[Tensor | None] = []
    handles: list[Any] = []
    try:
        for site in sites:
            for gate in site.gates:
                handles += _watch(probe.network.model, gate, totals[site.name], mask)
        vectors = 0.0
        with torch.inference_mode():
            for x in probe.inputs:
                mask[:] = [x["attention_mask"].double() if "attention_mask" in x else None]
                vectors += float(count_of(x) if mask[0] is None else mask[0].sum())
                probe.network.model(**x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / vectors).numpy() for name, total in totals.items()}


def _watch(model: nn.Module, gate: Gate, total: Tensor, mask: list[Tensor | None]) -> list[Any]:
    def add(values: Tensor) -> None:
        energy = values.double().square()
        if energy.dim() == 3 and mask[0] is not None:
            energy = energy * mask[0][: energy.shape[0], : energy.shape[1], None]
        # The units' dimension last: of a convolution's output it is the second.
        entries = energy.movedim(gate.dim, -1).sum(tuple(range(energy.dim() - 1)))
        total.add_(unit_sums(gate, entries, len(total)))

    module = model.get_submodule(gate.module)
    if gate.where in ("input", "within"):
        return [module.register_forward_pre_hook(lambda _, args: add(args[0]))]
    if gate.where in ("output", "norm"):
        return [module.register_forward_hook(lambda _, __, output: add(output))]

    if gate.where == "router":

        def chosen(_: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
            scores = output[1].double().square()
            weighted = scores if mask[0] is None else scores * mask[0].reshape(-1, 1)
            total.index_add_(0, output[2].flatten(), weighted.flatten())

        return [module.register_forward_hook(chosen)]

    def change(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            moved = (left - entered).double().square().mean(-1)
            total[index] += (moved if mask[0] is None else moved * mask[0]).sum()

        return hook

    layers: Any = module
    return [layer.register_forward_hook(change(index), with_kwargs=True) for index, layer in enumerate(layers)]


def gradients_at(
    probe: Probe,
    sites: Sequence[Site],
    seed: int,
    progress: Progress,
    closed: Mapping[str, Scores] | None = None,
) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Differentiate the loss of labels drawn from the network's own outputs by every gate.

    Parameters
    ----------
    closed : mapping of str to ndarray of bool, optional
        Units whose gates are closed meanwhile, shape ``(units,)``; all are open else.

    The divergence of a network from itself has no first derivative. Labels drawn from its own distribution give
    derivatives of mean zero whose squares average to the Fisher information, the second derivative of that divergence.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {site.name: torch.ones(site.units) for site in sites}
    for name, shut in (closed or {}).items():
        values[name][torch.as_tensor(shut)] = 0
    for value in values.values():
        value.requires_grad_(True)
    first = {site.name: torch.zeros(site.units, dtype=torch.float64) for site in sites}
    second = {site.name: torch.zeros(site.units, dtype=torch.float64) for site in sites}
    parts = [(x, start) for x in probe.inputs for start in range(0, count_of(x), MICRO)]
    frozen = [parameter for parameter in probe.network.model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    examples = 0
    try:
        for number, (x, start) in enumerate(parts):
            part = {name: tensor[start : start + MICRO] for name, tensor in x.items()}
            if count_of(part) < 3:
                continue
            with gated(probe.network.model, sites, values):
                output = outputs(probe.network, part)
            loss = sampled_loss(output, probe.network.pooling, generator)
            names = list(values)
            found = torch.autograd.grad(loss, [values[name] for name in names], allow_unused=True)
            examples += len(output)
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    first[name] += gradient.double().abs()
                    second[name] += gradient.double().square()
            progress("gradients", number + 1, len(parts))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    scale = max(examples, 1)
    return (
        {name: (total / scale).numpy() for name, total in first.items()},
        {name: (total / scale).numpy() for name, total in second.items()},
    )


def sampled_loss(output: Tensor, pooling: str, generator: torch.Generator) -> Tensor:
    """Return the summed negative log-likelihood (nats) of labels drawn from the output's own distribution."""
    if pooling in ("logits", "tokens"):
        logits = output.float()
    else:
        unit = F.normalize(output.float(), dim=-1)
        count = len(unit)
        similarity = unit @ unit.T / TEMPERATURE
        logits = similarity[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)
    log_probabilities = F.log_softmax(logits, -1)
    labels = torch.multinomial(log_probabilities.detach().exp(), 1, generator=generator)
    return -log_probabilities.gather(1, labels).sum()
