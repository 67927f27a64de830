"""Losses of recovery: how far what the student computes is from what its teacher does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.errors import BadInput
from isthmus.network import Network, low_precision
from isthmus.recovery.batches import Batch, Labelled
from isthmus.recovery.recipe import Recipe, uses_bf16
from isthmus.recovery.watch import Seen, Watched, layer_path, projection_of, see, sites_of, width_of
from isthmus.sites import LAYERS, WIDTH
from isthmus.tasks.divergence import divergence

COSENT_SCALE = 20.0
"""CoSENT multiplies cosines by this (1 / 0.05), as its authors do."""


def selection(kept: Sequence[int], width: int) -> Tensor:
    """Return the matrix ``(kept units, width)`` that puts each kept unit in its old place, zeros elsewhere."""
    matrix = torch.zeros(len(kept), width)
    matrix[torch.arange(len(kept)), torch.as_tensor(list(kept), dtype=torch.long)] = 1
    return matrix


def project(vectors: Tensor, projection: Tensor | None) -> Tensor:
    """Return vectors ``(..., width)`` in the teacher's width, in float32."""
    return vectors.float() if projection is None else vectors.float() @ projection


def output_loss(student: Tensor, teacher: Tensor, projection: Tensor | None) -> Tensor:
    """Return the mean of one minus the cosine between rows, ``(batch, width)`` against ``(batch, original width)``."""
    return (1 - F.cosine_similarity(project(student, projection), teacher.float(), dim=-1)).mean()


def hidden_loss(student: Seen, teacher: Seen, aligned: Tensor, projection: Tensor | None) -> Tensor:
    """Return the mean, over layers and tokens of aligned texts, of one minus the cosine between token states."""
    rows, mask = _aligned(student, aligned, student.hidden[0])
    if not len(rows):
        return student.pooled.new_zeros(())
    tokens = mask.shape[1]
    losses = [
        1 - F.cosine_similarity(project(ours[rows, :tokens][mask], projection), theirs[rows, :tokens][mask].float())
        for ours, theirs in zip(student.hidden, teacher.hidden, strict=True)
    ]
    return torch.stack([loss.mean() for loss in losses]).mean()


def attention_loss(student: Seen, teacher: Seen, aligned: Tensor) -> Tensor:
    """Return the divergence of token relations, in nats a token, over aligned texts (MiniLM, Wang et al. 2020).

    For vectors ``V`` of shape ``(tokens, width)``, all heads side by side, the relations are
    ``softmax(V V^T / sqrt(width))``; as they do not know the width, they compare networks with different heads.
    """
    if student.projected is None or teacher.projected is None:
        return student.pooled.new_zeros(())
    rows, mask = _aligned(student, aligned, student.projected)
    if not len(rows):
        return student.pooled.new_zeros(())
    tokens = mask.shape[1]
    ours = _relations(student.projected[rows, :tokens], mask)
    theirs = _relations(teacher.projected[rows, :tokens], mask)
    return F.kl_div(ours[mask], theirs[mask], reduction="batchmean", log_target=True)


def _aligned(student: Seen, aligned: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the aligned rows and their mask, cut to the longest of them: both sides have that many tokens."""
    rows = aligned.nonzero()[:, 0]
    whole = torch.ones(states.shape[:2], dtype=torch.bool) if student.mask is None else student.mask
    mask = whole[rows].bool()
    longest = int(mask.sum(1).max()) if len(rows) else 0
    return rows, mask[:, :longest]


def _relations(vectors: Tensor, mask: Tensor) -> Tensor:
    scores = vectors.float() @ vectors.float().transpose(1, 2) / math.sqrt(vectors.shape[-1])
    # A large finite number rather than infinity: the divergence multiplies it by a probability of zero.
    return F.log_softmax(scores.masked_fill(~mask[:, None, :], -1e4), dim=-1)


def cosent_loss(left: Tensor, right: Tensor, scores: Tensor) -> Tensor:
    """Return CoSENT (Su 2022): pairs that score higher must have a higher cosine than pairs that score lower.

    Parameters
    ----------
    left, right : Tensor, shape ``(pairs, width)``
    scores : Tensor, shape ``(pairs,)``
    """
    cosine = F.cosine_similarity(left.float(), right.float(), dim=-1) * COSENT_SCALE
    differences = cosine[None, :] - cosine[:, None]
    wrong = differences[scores[:, None] > scores[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), dim=0)


class Learner(nn.Module):
    """The student with the projection to its teacher's width; calling it gives the loss of one micro-batch.

    Parameters
    ----------
    student, teacher : Network
    recipe : Recipe
    kept : mapping of str to sequence of int or None
        The units kept at each site of the teacher: where the student's width and layers come from.
    """

    def __init__(
        self, student: Network, teacher: Network, recipe: Recipe, kept: Mapping[str, Sequence[int]] | None
    ) -> None:
        super().__init__()
        self.network = student
        self.model = student.model
        self.recipe = recipe
        self.bf16 = uses_bf16(recipe.precision)
        ours, theirs = sites_of(student), sites_of(teacher)
        kept = kept or {}
        self.projection: Tensor | None = None
        if WIDTH in ours and WIDTH in theirs:
            width, original = width_of(ours), width_of(theirs)
            if width != original:
                self.projection = nn.Parameter(selection(kept.get(WIDTH, range(width)), original))
        self.watched, self.teacher_watched = Watched(), Watched()
        if recipe.tokenwise:
            if LAYERS not in ours or LAYERS not in theirs:
                raise BadInput(f"recovery: network {student.name} has no layers to compare; set hidden=0, attention=0")
            depth = ours[LAYERS].units
            layers = list(kept.get(LAYERS, range(theirs[LAYERS].units)))[:depth]
            self.watched = _watched(recipe, ours, list(range(depth)))
            self.teacher_watched = _watched(recipe, theirs, layers)

    def forward(self, batch: Batch | Labelled, target: Seen | None = None) -> Tensor:
        """Return the weighted loss of a micro-batch, a scalar; ``target`` is what the teacher made of it."""
        inputs = batch.student if isinstance(batch, Batch) else batch.inputs
        with low_precision(self.bf16):
            seen = see(self.network, inputs, self.watched)
        # Similarities and cosines are taken in float32 whatever the network computes in.
        with torch.autocast("cpu", enabled=False):
            if isinstance(batch, Labelled):
                return self.recipe.labels * batch.weight * self._labelled(seen.pooled, batch.target)
            assert target is not None
            return batch.weight * self._distilled(seen, target, batch.aligned)

    def _distilled(self, seen: Seen, target: Seen, aligned: Tensor) -> Tensor:
        recipe, pooling = self.recipe, self.network.pooling
        loss = 0 * seen.pooled.float().sum()  # a gradient of zero where no weight applies
        if recipe.output and not self.network.predicts and self._comparable(seen.pooled, target.pooled):
            loss = loss + recipe.output * output_loss(seen.pooled, target.pooled, self.projection)
        if recipe.relation:
            loss = loss + recipe.relation * divergence(seen.pooled, target.pooled, pooling)
        if recipe.hidden:
            loss = loss + recipe.hidden * hidden_loss(seen, target, aligned, self.projection)
        if recipe.attention:
            loss = loss + recipe.attention * attention_loss(seen, target, aligned)
        return loss

    def _comparable(self, ours: Tensor, theirs: Tensor) -> bool:
        """Return whether outputs have one width: without a stream they may not, and there is no projection then."""
        return ours.shape[-1] == theirs.shape[-1] or self.projection is not None

    def _labelled(self, pooled: Tensor, target: Tensor) -> Tensor:
        if self.network.pooling == "logits":
            return F.cross_entropy(pooled.float(), target)
        left, right = pooled.chunk(2)
        return cosent_loss(left, right, target)


def _watched(recipe: Recipe, sites: dict[str, Any], layers: list[int]) -> Watched:
    return Watched(
        tuple(layer_path(sites, layer) for layer in layers) if recipe.hidden else (),
        projection_of(sites, layers[-1], recipe.attention_of) if recipe.attention else None,
    )
