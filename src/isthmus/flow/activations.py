"""Activations of few bits: which linear maps round what enters them, and what that loses."""

from __future__ import annotations

import copy
from dataclasses import replace

from torch import nn

from isthmus.budget import parse_budget
from isthmus.errors import BadInput
from isthmus.export.quantized import FLOAT
from isthmus.flow.planning import Planned
from isthmus.flow.study import Study
from isthmus.network import Network
from isthmus.relevance.probe import measure_network
from isthmus.sites import LAYERS, discover
from isthmus.storage.rounding import LEAST_BITS, MOST_BITS, round_inputs


def check_activations(bits: int | None, *, to: str | None, precision: str) -> None:
    """Refuse what rounded activations do not go with.

    Raises
    ------
    BadInput
        If the bits are out of range, or what is asked beside them cannot be kept.
    """
    if bits is None:
        return
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise BadInput(f"activations of {bits} bits: give {LEAST_BITS} to {MOST_BITS}")
    if precision != FLOAT:
        raise BadInput(f"activations: precision {precision} has its own integers; give one of the two")
    if to is not None and "latency" in parse_budget(to).currencies:
        raise BadInput(
            "activations: no engine here multiplies integers of so few bits, so they save no time; "
            "give --precision w8a8 for latency"
        )


def with_rounded_inputs(network: Network, bits: int | None) -> Network:
    """Return a network whose linear maps round what enters them; the same one where ``bits`` is None.

    All within layers do. What comes before and after (embeddings, poolers, heads) is left as it is, as in Wu et al.
    2023.

    Raises
    ------
    BadInput
        If it has no layers.
    """
    if bits is None:
        return network
    layers = next((site.module for site in discover(network) if site.name == LAYERS), None)
    if layers is None:
        raise BadInput(f"activations: network {network.name} has no layers whose linear maps could round")
    model = copy.deepcopy(network.model)
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(f"{layers}.")
    ]
    round_inputs(model, dict.fromkeys(paths, bits))
    return replace(network, model=model)


def add_rounding(study: Study, planned: Planned, bits: int | None) -> Planned:
    """Return a plan that says that activations are rounded, with what this loses by itself added to its distortion."""
    if bits is None:
        return planned
    lost = measure_network(study.probe, with_rounded_inputs(study.network, bits))
    note = (
        f"what enters linear maps is rounded to {bits} bits, each token by itself: {lost:.3g} nats in the whole "
        "network; engines here compute it in float32, so this saves neither bytes nor time on this machine"
    )
    plan = planned.plan.model_copy(
        update={
            "activations": bits,
            "distortion": planned.plan.distortion + lost,
            "notes": (*planned.plan.notes, note),
        }
    )
    return replace(planned, plan=plan)
