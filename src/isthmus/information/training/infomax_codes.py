"""Discrete infomax codes: ``d`` symbols out of ``k`` for each input, that say as much of its label as they can.

Lee et al. 2020 (DIMCO, arXiv 1905.11656). Probabilities of symbols are what is trained; the code of an input is the
most probable symbol at each place, ``d log2 k`` bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput

_TINY = 1e-12


class CodeHead(nn.Module):
    """From features to the probabilities of symbols.

    Parameters
    ----------
    features : int
    places, symbols : int
        ``d`` and ``k``.

    Raises
    ------
    BadInput
        If there is no place, or fewer than two symbols.
    """

    def __init__(self, features: int, places: int, symbols: int) -> None:
        super().__init__()
        if places < 1 or symbols < 2:
            raise BadInput(f"codes: {places} places of {symbols} symbols; give 1 or more of 2 or more")
        self.places, self.symbols = places, symbols
        self.project = nn.Linear(features, places * symbols)

    def forward(self, features: Tensor) -> Tensor:
        """Return probabilities, shape ``(batch, places, symbols)``."""
        scores: Tensor = self.project(features)
        return scores.reshape(*scores.shape[:-1], self.places, self.symbols).softmax(-1)


@dataclass(frozen=True)
class InfomaxLoss:
    """Minus what each place says of the label, plus what places say of each other.

    ``-sum_i I(h_i; y) + weight sum_(i != j) I(h_i; h_j)``: the terms of first and second order of what code and label
    share, measured on the batch (Lee et al. 2020, section 3.1).

    Parameters
    ----------
    weight : float
        Of what places say of each other.
    """

    weight: float = 1.0

    def __call__(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Return the loss in nats a place (scalar); ``labels`` are integers of shape ``(batch,)``."""
        places = probabilities.shape[1]
        loss = -label_information(probabilities, labels).sum()
        if self.weight and places > 1:
            between = place_information(probabilities)
            loss = loss + self.weight * (between.sum() - between.diagonal().sum())
        return loss / places


def label_information(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mutual information of each place with the label, in nats, shape ``(places,)``.

    Raises
    ------
    BadInput
        If labels are not one integer for each of the batch.
    """
    if probabilities.ndim != 3 or labels.shape != probabilities.shape[:1] or labels.is_floating_point():
        raise BadInput(
            f"codes: probabilities of shape {tuple(probabilities.shape)}, labels of shape {tuple(labels.shape)}; "
            "give (batch, places, symbols) and one integer each"
        )
    classes = torch.unique(labels, return_inverse=True)[1]
    member = nn.functional.one_hot(classes).to(probabilities.dtype) / len(labels)
    joint = torch.einsum("nc,nds->dcs", member, probabilities)
    return _information(joint)


def place_information(probabilities: Tensor) -> Tensor:
    """Return the mutual information of each pair of places, in nats, shape ``(places, places)``."""
    joint = torch.einsum("nas,nbt->abst", probabilities, probabilities) / len(probabilities)
    return _information(joint)


def codes_of(probabilities: Tensor) -> Tensor:
    """Return the most probable symbols, shape ``(batch, places)``, int64."""
    return probabilities.argmax(-1)


def agreement(probabilities: Tensor, codes: Tensor) -> Tensor:
    """Return how probable stored codes are under queries, in nats, shape ``(queries, codes)``: what retrieval ranks by.

    Parameters
    ----------
    probabilities : Tensor, shape ``(queries, places, symbols)``
    codes : Tensor, shape ``(codes, places)``
    """
    logarithms = probabilities.clamp(min=_TINY).log()
    found = torch.zeros(len(probabilities), len(codes), dtype=logarithms.dtype)
    for place in range(codes.shape[1]):
        found = found + logarithms[:, place][:, codes[:, place]]
    return found


def _information(joint: Tensor) -> Tensor:
    """Return the mutual information of tables of joint probabilities, over the last two axes."""
    rows, columns = joint.sum(-1, keepdim=True), joint.sum(-2, keepdim=True)
    ratio = (joint.clamp(min=_TINY) / (rows * columns).clamp(min=_TINY)).log()
    return (joint * ratio).sum((-2, -1))
