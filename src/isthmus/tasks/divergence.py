"""Divergence from the original, in nats: the task loss where there are no labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.05
"""The scale (1/20) with which sentence encoders such as all-MiniLM-L6-v2 were trained to compare texts."""


def similarity_divergence(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Return how differently two encoders see which texts of a batch are alike.

    For every text, the cosine similarities to the other texts of the batch, divided by the temperature, make a
    distribution over them; the result is the mean Kullback-Leibler divergence of the student's from the teacher's.
    It does not ask for equal widths, so it holds for a narrowed residual stream too.

    Parameters
    ----------
    student : Tensor, shape ``(batch, width)``
    teacher : Tensor, shape ``(batch, original width)``

    Returns
    -------
    Tensor
        A scalar, in nats.
    """
    logits_student = _similarities(student, temperature)
    logits_teacher = _similarities(teacher, temperature)
    return F.kl_div(logits_student, logits_teacher, reduction="batchmean", log_target=True)


def _similarities(vectors: Tensor, temperature: float) -> Tensor:
    unit = F.normalize(vectors.float(), dim=-1)
    similarity = unit @ unit.T / temperature
    count = len(unit)
    # A text's likeness to itself says nothing; the diagonal goes before the softmax.
    off = similarity[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)
    return F.log_softmax(off, dim=-1)


def logit_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of the student's class distribution from the teacher's, in nats.

    Parameters
    ----------
    student, teacher : Tensor, shape ``(batch, classes)``
    """
    return F.kl_div(
        F.log_softmax(student.float(), -1), F.log_softmax(teacher.float(), -1), reduction="batchmean", log_target=True
    )


def divergence(student: Tensor, teacher: Tensor, pooling: str) -> Tensor:
    """Return the divergence that fits a network, in nats.

    Of a classifier that of its classes, an example; of a language model that of the next token, a token; of any other
    network that of similarities, a text or image.
    """
    if pooling in ("logits", "tokens"):
        return logit_divergence(student, teacher)
    return similarity_divergence(student, teacher)
