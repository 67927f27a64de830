"""What every method of rounding after training is given, gives back, and shares."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from isthmus.bottlenecks.bits.after_training.levels import tensor_levels
from isthmus.bottlenecks.bits.after_training.observing import Multiplied, Seen, layers_of, linear_maps
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.bits.rounded_attention import AttentionLevels, Levels, set_levels
from isthmus.bottlenecks.coder import Floats, MatrixStatistics, Setting
from isthmus.examples import Example
from isthmus.network import Network, encode, outputs
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.coded import Coded
from isthmus.storage.holders import with_codes
from isthmus.storage.rounding import Even, round_inputs


@dataclass(frozen=True)
class Job:
    """What is to be rounded.

    Parameters
    ----------
    network : Network
        Left as it is.
    examples : sequence of Image
        A few that levels are set on.
    weights, activations : int
        Bits.
    seed : int
    """

    network: Network
    examples: Sequence[Example]
    weights: int
    activations: int
    seed: int = 0


class Method(Protocol):
    """A way to round after training: one file, one frozen dataclass."""

    @property
    def name(self) -> str:
        """The name by which ``--method`` asks for it."""

    @property
    def slug(self) -> str | None:
        """The row of the catalogue it comes from, if any."""

    def rounded(self, job: Job) -> Network:
        """Return a network whose linear maps and attention round, its weights coded.

        Raises
        ------
        BadInput
            If the network's layers or attention cannot be rounded.
        """


def copied(network: Network) -> Network:
    """Return the network around a copy of its model."""
    return network.with_model(copy.deepcopy(network.model))


def runner(network: Network, examples: Sequence[Example], most: int = 8) -> Callable[[], Tensor]:
    """Return what runs a network on the first examples."""
    inputs = encode(network, list(examples[:most]))
    return lambda: outputs(network, inputs)


def attention_levels(
    seen: Mapping[str, Multiplied], bits: int, weights: Callable[[Tensor], Levels], *, dual: bool = False
) -> dict[str, AttentionLevels]:
    """Return levels for each layer's attention: even ones for query, key and value.

    Parameters
    ----------
    weights : callable
        From attention weights to their levels.
    """
    found = {}
    for path, own in seen.items():
        query, key, value = (
            tensor_levels(torch.cat([one.reshape(-1) for one in parts]), bits, dual=dual)
            for parts in (own.query, own.key, own.value)
        )
        found[path] = AttentionLevels(query, key, value, weights(torch.cat([one.reshape(-1) for one in own.weights])))
    return found


def input_levels(seen: Seen, bits: int, known: Mapping[str, Even], *, dual: bool = False) -> dict[str, Even]:
    """Return the levels of what enters each linear map: those known already, else even ones for the whole tensor."""
    return {
        path: known[path] if path in known else tensor_levels(values, bits, dual=dual)
        for path, values in seen.inputs.items()
    }


def code_of(weight: Floats, bits: int, moments: Floats | None = None) -> Coded:
    """Return the code of a matrix on a grid of ``2 ** bits - 1`` levels a row, with error feedback given moments."""
    ones = Sensitivity(np.ones(weight.shape[0], np.float32), np.ones(weight.shape[1], np.float32))
    return Gptq().code(weight, MatrixStatistics(ones, moments), Setting(float(bits)))


def nearest_codes(network: Network, bits: int) -> dict[str, Coded]:
    """Return the codes of all linear maps within layers, rounded to the nearest."""
    maps = linear_maps(network.model, layers_of(network))
    return {f"{path}.weight": code_of(one.weight.detach().numpy(), bits) for path, one in maps.items()}


def finished(
    network: Network, inputs: Mapping[str, Even], attention: Mapping[str, AttentionLevels], codes: Mapping[str, Coded]
) -> Network:
    """Return the network with its levels set, in place, and its weights coded."""
    round_inputs(network.model, inputs)
    set_levels(network.model, attention)
    return with_codes(replace(network, codes={}), dict(codes))
