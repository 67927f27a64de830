"""The probe: examples put aside, on which divergence from the original is measured with gates closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isthmus.examples import Example, size_of, texts_of
from isthmus.network import Network, encode, low_precision, outputs, tokenize
from isthmus.sites import VOCABULARY, Site, gated
from isthmus.tasks.divergence import divergence

PROBE_TOKENS = 96
"""Texts are cut to this many tokens: it bounds memory, and divergence is an average over many texts."""

PROBE_LOGITS = 1 << 26
"""Logits of the original that a probe holds at most: a quarter of a gigabyte."""


@dataclass(frozen=True)
class Probe:
    """Batches of examples with the original's outputs.

    ``inputs`` holds what the model takes, of texts tensors of shape ``(batch, tokens)``, of images one of shape
    ``(batch, channels, height, width)``; ``reference`` outputs of shape ``(batch, width)``.
    """

    network: Network
    examples: tuple[tuple[Example, ...], ...]
    inputs: tuple[dict[str, Tensor], ...]
    reference: tuple[Tensor, ...]


def most_examples(network: Network) -> int:
    """Return how many examples the original's outputs can be held of: a language model has many of one text."""
    if not network.continues:
        return 1 << 30
    vocabulary = int(network.model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    return max(8, PROBE_LOGITS // (vocabulary * PROBE_TOKENS))


def make_probe(network: Network, examples: Sequence[Example], *, batch: int = 64) -> Probe:
    """Encode examples in batches, texts of like length together, and run the original on them.

    Batches of fewer than four are left out unless there is no other: likeness needs something to compare.
    """
    network = replace(network, max_length=min(network.max_length, PROBE_TOKENS))
    ordered = sorted(examples, key=size_of)
    groups = [tuple(ordered[start : start + batch]) for start in range(0, len(ordered), batch)]
    groups = [group for group in groups if len(group) >= min(4, len(examples))] or groups
    inputs = tuple(encode(network, group) for group in groups)
    with torch.inference_mode():
        reference = tuple(outputs(network, x) for x in inputs)
    return Probe(network, tuple(groups), inputs, reference)


def count_of(inputs: Mapping[str, Tensor]) -> int:
    """Return how many examples there are in what a model takes."""
    return len(next(iter(inputs.values())))


def measure_closed(
    probe: Probe, sites: Sequence[Site], values: Mapping[str, Tensor], *, estimate: bool = False
) -> float:
    """Return the divergence, in nats, from the original when gates have these values (0 closed, 1 open).

    An ``estimate`` may compute in bfloat16: a third of the time, about 1e-4 nats off.
    """
    with torch.inference_mode(), low_precision(None if estimate else False), gated(probe.network.model, sites, values):
        return _mean_divergence(probe, probe.network, probe.inputs)


def measure_network(probe: Probe, network: Network) -> float:
    """Return the divergence, in nats, of another network from the original on the probe's examples."""
    with torch.inference_mode():
        shorter = replace(network, max_length=probe.network.max_length)
        return _mean_divergence(probe, network, [encode(shorter, group) for group in probe.examples])


def measure_vocabulary(probe: Probe, keep: Sequence[int], *, estimate: bool = False) -> float:
    """Return the divergence, in nats, when only the tokens in ``keep`` are left and others fall back to pieces.

    An ``estimate`` may compute in bfloat16, as in ``measure_closed``.
    """
    from isthmus.sites.vocabulary import narrow_tokenizer

    narrowed = probe.network.with_model(probe.network.model, narrow_tokenizer(probe.network.tokenizer, keep))
    old = torch.as_tensor(list(keep))
    inputs = []
    for group in probe.examples:
        encoded = tokenize(narrowed, texts_of(group, "vocabulary"))
        inputs.append({**encoded, "input_ids": old[encoded["input_ids"]]})
    with torch.inference_mode(), low_precision(None if estimate else False):
        return _mean_divergence(probe, probe.network, inputs)


def _mean_divergence(probe: Probe, network: Network, inputs: Sequence[dict[str, Tensor]]) -> float:
    total = examples = 0.0
    for x, reference in zip(inputs, probe.reference, strict=True):
        output = outputs(network, x).float()
        total += float(divergence(output, reference, network.pooling)) * len(reference)
        examples += len(reference)
    return max(total / examples, 0.0)


def gated_sites(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return the sites whose units can be closed by a gate: all but the vocabulary."""
    return tuple(site for site in sites if site.name != VOCABULARY)
