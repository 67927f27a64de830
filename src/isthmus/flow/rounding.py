"""Round: weights and activations of few bits after training, as an artifact, measured beside the original."""

from __future__ import annotations

import random
import time as clock
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.bottlenecks.bits.after_training.method import Job
from isthmus.bottlenecks.bits.after_training.registry import method as method_named
from isthmus.errors import BadInput
from isthmus.flow.suiting import check_suits
from isthmus.flow.untrained import write_and_measure
from isthmus.network import Network
from isthmus.progress import Progress, silent
from isthmus.storage.artifact import check_output
from isthmus.storage.parts import described_parts
from isthmus.storage.rounding import LEAST_BITS, MOST_BITS, rounded_inputs
from isthmus.tasks import Task

EXAMPLES = 128
"""How many examples levels are set on."""


@dataclass(frozen=True)
class Rounded:
    """A rounded network, as it was opened again.

    Parameters
    ----------
    network : Network
    rows : list of dict
        What was measured of the original and of it, see `isthmus.flow.verifying.compare_networks`.
    """

    network: Network
    rows: list[dict[str, Any]]


def round_network(
    network: Network,
    task: Task,
    out: Path,
    *,
    method: str = "repquant",
    weights: int = 4,
    activations: int = 4,
    examples: int = EXAMPLES,
    engine: str = "openvino",
    seed: int = 0,
    progress: Progress = silent,
) -> Rounded:
    """Round a network's weights and activations without training it, write it, open it again and measure it.

    Parameters
    ----------
    method : str
        Of `isthmus.bottlenecks.bits.after_training.registry`.
    weights, activations : int
        Bits. Weights are stored in as many; activations are computed in floating point on as many levels, which saves
        no time here.
    examples : int
        How many of the task's examples levels are set on.
    out : Path
        A folder that does not exist yet.

    Raises
    ------
    BadInput
        If bits or examples are out of range, the network is rounded already or cannot be, or the task does not suit it.
    """
    started = clock.monotonic()
    check_output(out)
    chosen = method_named(method)
    for name, bits in (("weights", weights), ("activations", activations)):
        if not LEAST_BITS <= bits <= MOST_BITS:
            raise BadInput(f"{name} of {bits} bits: give {LEAST_BITS} to {MOST_BITS}")
    if examples < 1:
        raise BadInput(f"examples: {examples}; give at least one to set levels on")
    check_suits(network, task)
    if network.images is None:
        raise BadInput(f"network {network.name}: reads text; levels that are set beforehand are of images only as yet")
    if rounded_inputs(network.model) or described_parts(network.model):
        raise BadInput(f"network {network.name}: rounds or leaves tokens out already; give it as it was before")
    seen = list(task.require_train())
    random.Random(seed).shuffle(seen)
    progress("round", 0, 1)
    small = chosen.rounded(Job(network, seen[:examples], weights, activations, seed))
    progress("round", 1, 1)
    described = {"rounding": {"method": method, "weights": weights, "activations": activations, "examples": examples}}
    opened, rows = write_and_measure(
        network, small, task, out, described, name=f"{network.name} w{weights}a{activations} {method}",
        started=started, engine=engine, seed=seed, progress=progress,
    )  # fmt: skip
    return Rounded(opened, rows)
