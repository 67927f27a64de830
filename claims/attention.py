"""Attention: how much each head of the original attends to special tokens and to the current token."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from isthmus.network import Network, tokenize

BATCH = 16


def attention_masses(network: Network, texts: Sequence[str]) -> dict[str, list[list[float]]]:
    """Return, for every layer and head, the mean share of attention that goes to special and to current tokens.

    Averaged over the tokens of the texts that are not special themselves, whose own place is counted once.

    Parameters
    ----------
    network : Network
        The original; it is copied, because only eager attention gives its maps.
    texts : sequence of str

    Returns
    -------
    dict
        ``special`` and ``current``: lists of shape ``(layers, heads)``.
    """
    model: Any = copy.deepcopy(network.model)
    model.set_attn_implementation("eager")
    special_ids = torch.tensor(sorted(network.tokenizer.all_special_ids))
    special = current = torch.zeros(())
    tokens = 0.0
    for start in range(0, len(texts), BATCH):
        inputs = tokenize(network, texts[start : start + BATCH])
        with torch.inference_mode():
            maps = torch.stack(model(**inputs, output_attentions=True).attentions, dim=1)
        real = inputs["attention_mask"].bool()
        marked = torch.isin(inputs["input_ids"], special_ids) & real
        queries = (real & ~marked).double()
        maps = maps.double()
        to_special = (maps * marked[:, None, None, None, :]).sum(-1)
        to_current = maps.diagonal(dim1=-2, dim2=-1)
        special = special + (to_special * queries[:, None, None, :]).sum((0, 3))
        current = current + (to_current * queries[:, None, None, :]).sum((0, 3))
        tokens += float(queries.sum())
    return {"special": (special / tokens).tolist(), "current": (current / tokens).tolist()}


def closed_shares(plans: Sequence[Mapping[str, Sequence[int]]], layers: int, heads: int) -> np.ndarray[Any, Any]:
    """Return how often each head was closed among the plans in which its layer stays; NaN where its layer never does.

    Parameters
    ----------
    plans : sequence of mappings
        From a layer that stays (as text) to the heads that stay in it.

    Returns
    -------
    ndarray, shape ``(layers, heads)``
    """
    present, kept = np.zeros((layers, 1)), np.zeros((layers, heads))
    for plan in plans:
        for layer, stay in plan.items():
            present[int(layer)] += 1
            kept[int(layer), list(stay)] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray(1 - np.where(present > 0, kept / np.where(present > 0, present, 1), np.nan))


def closed_against_kept(
    masses: np.ndarray[Any, Any], closed: np.ndarray[Any, Any], draws: int = 10_000
) -> dict[str, float]:
    """Compare the attention of heads that are closed with that of heads that are kept.

    Every head counts among the closed by how often it is closed and among the kept by how often it is kept. The
    p-value is one-sided, over permutations of the heads' masses.

    Parameters
    ----------
    masses : ndarray, shape ``(layers, heads)``
    closed : ndarray, shape ``(layers, heads)``
        Shares; NaN leaves a head out.

    Returns
    -------
    dict
        ``closed``, ``kept`` (mean masses), ``difference``, ``p``, ``heads_closed`` and ``heads_kept`` (sums of
        shares); the means are absent where no head is closed, or none kept.
    """
    there = ~np.isnan(closed)
    values, share = masses[there], closed[there]
    counts = {"heads_closed": float(share.sum()), "heads_kept": float((1 - share).sum())}
    if min(counts.values()) <= 0:
        return counts
    weights = share / share.sum() - (1 - share) / (1 - share).sum()
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.permutation(values) for _ in range(draws)]) @ weights
    difference = float(values @ weights)
    return {
        "closed": float(values @ share / share.sum()),
        "kept": float(values @ (1 - share) / (1 - share).sum()),
        "difference": difference,
        "p": float((1 + (drawn >= difference - 1e-12).sum()) / (1 + draws)),
        **counts,
    }
