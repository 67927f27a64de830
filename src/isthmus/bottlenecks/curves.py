"""Curves: what coding each matrix saves and loses, measured one matrix at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from isthmus.bottlenecks.coder import Coder, MatrixStatistics, Setting
from isthmus.progress import Progress, silent
from isthmus.relevance.probe import Probe, measure_closed
from isthmus.relevance.resuming import Resuming
from isthmus.sites import discover
from isthmus.storage.blobs import pack
from isthmus.storage.coded import decode

ANCHORS = (3.0, 1.5)
"""Nominal bits at which a coder with continuous steps is measured; what lies between is read off the line."""
FINEST, COARSEST, STEP = 8.0, 1.0, 0.125
_DECAY = float(np.log(4.0))
"""Where rates are high, a bit more leaves a quarter of the error's square, and of the nats."""
_LEAST = 1e-7
_SMALLEST = 1024
"""Matrices of fewer weights stay in float16: a code's tables would take more than it saves."""


@dataclass(frozen=True)
class Candidate:
    """A way to code a matrix.

    Parameters
    ----------
    bits : float
        What a weight then takes in the file, scales and tables included.
    nats : float
        What is lost, measured (or between two measurements) with all else as it was.
    """

    coder: str
    setting: Setting
    bits: float
    nats: float


Curves = Mapping[str, tuple[Candidate, ...]]


def coded_matrices(model: nn.Module) -> list[str]:
    """Return the names of the weights that can be coded: of linear maps and embeddings, none shared."""
    shared = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return [
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and module.weight.numel() >= _SMALLEST
        and shared.count(id(module.weight)) == 1
    ]


def measure_curves(
    probe: Probe,
    statistics: Mapping[str, MatrixStatistics],
    coders: Sequence[Coder],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, tuple[Candidate, ...]]:
    """Code each matrix alone at a few settings, and measure bytes and divergence on half of the probe.

    Returns
    -------
    dict of str to tuple of Candidate
        By name of the matrix. A coder that takes any number of bits is measured at `ANCHORS`, and candidates an
        eighth of a bit apart are read off the line between (in the logarithm of nats; finer ones by theory).
    """
    half = replace(probe, examples=probe.examples[::2], inputs=probe.inputs[::2], reference=probe.reference[::2])
    found: dict[str, tuple[Candidate, ...]] = {}
    with Resuming(half, discover(probe.network)) as resuming:
        for number, (name, own) in enumerate(statistics.items()):
            resuming.start_at(resuming.layer_of(name))
            candidates: list[Candidate] = []
            for coder in coders:
                candidates += _measured(half, name, own, coder, seed)
            found[name] = tuple(candidates)
            progress("codes", number + 1, len(statistics))
    return found


def _measured(probe: Probe, name: str, statistics: MatrixStatistics, coder: Coder, seed: int) -> list[Candidate]:
    parameter = probe.network.model.get_parameter(name)
    weight = parameter.detach().numpy().copy()
    continuous = getattr(coder, "continuous", False)
    settings = tuple(Setting(bits) for bits in ANCHORS) if continuous else coder.settings(weight.shape)
    measured = []
    try:
        for setting in settings:
            coded = coder.code(weight, statistics, setting, seed=seed)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(decode(coded)))
            nats = measure_closed(probe, [], {})
            measured.append(Candidate(coder.name, setting, 8 * len(pack(coded)) / weight.size, max(nats, _LEAST)))
    finally:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(weight))
    return between(measured) if continuous else measured


def between(measured: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates an eighth of a bit apart from two measured ones, finer first."""
    fine, coarse = measured
    span = fine.setting.bits - coarse.setting.bits
    # An error that is small beside others' noise may seem to fall slowly, or to rise: theory bounds the line.
    slope = float(np.clip((np.log(coarse.nats) - np.log(fine.nats)) / span, 0.5 * _DECAY, 3 * _DECAY))
    found = []
    for nominal in np.arange(FINEST, COARSEST - STEP / 2, -STEP).tolist():
        share = float(np.clip((fine.setting.bits - nominal) / span, 0.0, 1.0))
        extra = (1 - share) * (fine.bits - fine.setting.bits) + share * (coarse.bits - coarse.setting.bits)
        if nominal >= fine.setting.bits:
            nats = fine.nats * np.exp(-_DECAY * (nominal - fine.setting.bits))
        else:
            nats = fine.nats * np.exp(slope * (fine.setting.bits - nominal))
        found.append(Candidate(fine.coder, Setting(nominal), nominal + extra, float(nats)))
    return found
