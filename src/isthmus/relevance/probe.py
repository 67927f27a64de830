"""The probe: texts put aside, on which divergence from the original is measured with gates closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.network import Network, low_precision, pool, tokenize
from isthmus.sites import VOCABULARY, Site, gated
from isthmus.tasks.divergence import divergence

PROBE_TOKENS = 96
"""Texts are cut to this many tokens: it bounds memory, and divergence is an average over many texts."""


@dataclass(frozen=True)
class Probe:
    """Batches of texts with the original's outputs.

    ``inputs`` holds tensors of shape ``(batch, tokens)``, ``reference`` outputs of shape ``(batch, width)``.
    """

    network: Network
    texts: tuple[tuple[str, ...], ...]
    inputs: tuple[dict[str, Tensor], ...]
    reference: tuple[Tensor, ...]


def make_probe(network: Network, texts: Sequence[str], *, batch: int = 64) -> Probe:
    """Tokenize ``texts`` in batches of like length and run the original on them.

    Batches of fewer than four texts are left out unless there is no other: likeness needs something to compare.
    """
    network = replace(network, max_length=min(network.max_length, PROBE_TOKENS))
    ordered = sorted(texts, key=len)
    groups = [tuple(ordered[start : start + batch]) for start in range(0, len(ordered), batch)]
    groups = [group for group in groups if len(group) >= min(4, len(texts))] or groups
    inputs = tuple(tokenize(network, group) for group in groups)
    with torch.inference_mode():
        reference = tuple(pool(network, network.model(**x), x["attention_mask"]) for x in inputs)
    return Probe(network, tuple(groups), inputs, reference)


def measure_closed(
    probe: Probe, sites: Sequence[Site], values: Mapping[str, Tensor], *, estimate: bool = False
) -> float:
    """Return the divergence, in nats, from the original when gates have these values (0 closed, 1 open).

    An ``estimate`` may compute in bfloat16: a third of the time, about 1e-4 nats off.
    """
    with torch.inference_mode(), low_precision(None if estimate else False), gated(probe.network.model, sites, values):
        return _mean_divergence(probe, probe.network, probe.inputs)


def measure_network(probe: Probe, network: Network) -> float:
    """Return the divergence, in nats, of another network from the original on the probe's texts."""
    with torch.inference_mode():
        shorter = replace(network, max_length=probe.network.max_length)
        return _mean_divergence(probe, network, [tokenize(shorter, group) for group in probe.texts])


def measure_vocabulary(probe: Probe, keep: Sequence[int], *, estimate: bool = False) -> float:
    """Return the divergence, in nats, when only the tokens in ``keep`` are left and others fall back to pieces.

    An ``estimate`` may compute in bfloat16, as in ``measure_closed``.
    """
    from isthmus.sites.vocabulary import narrow_tokenizer

    narrowed = probe.network.with_model(probe.network.model, narrow_tokenizer(probe.network.tokenizer, keep))
    old = torch.as_tensor(list(keep))
    inputs = []
    for group in probe.texts:
        encoded = tokenize(narrowed, group)
        inputs.append({**encoded, "input_ids": old[encoded["input_ids"]]})
    with torch.inference_mode(), low_precision(None if estimate else False):
        return _mean_divergence(probe, probe.network, inputs)


def _mean_divergence(probe: Probe, network: Network, inputs: Sequence[dict[str, Tensor]]) -> float:
    total = texts = 0.0
    for x, reference in zip(inputs, probe.reference, strict=True):
        output = pool(network, network.model(**x), x["attention_mask"]).float()
        total += float(divergence(output, reference, network.pooling)) * len(reference)
        texts += len(reference)
    return max(total / texts, 0.0)


def gated_sites(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return the sites whose units can be closed by a gate: all but the vocabulary."""
    return tuple(site for site in sites if site.name != VOCABULARY)
