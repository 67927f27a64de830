"""Features: what a network makes of an example before it decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isthmus.audit.checks import Array, check_finite
from isthmus.examples import Example
from isthmus.network import Network, embed

_BATCH = 64


def encoder_of(network: Network) -> Network:
    """Return a network whose output is features: itself, or of a classifier the mean of its last hidden states.

    Of a classifier that does not name its encoder features are what its last linear map takes.
    """
    prefix = str(getattr(network.model, "base_model_prefix", ""))
    if network.pooling != "logits":
        return network
    if hasattr(network.model, prefix):
        return replace(network.with_model(network.model.get_submodule(prefix)), pooling="mean", normalize=False)
    from isthmus.audit.headless import Headless

    return replace(network.with_model(Headless(network.model)), pooling="mean", normalize=False)


def features_of(network: Network, examples: Sequence[Example]) -> Array:
    """Return the embeddings of texts or images, shape (examples, width), checked to be numbers."""
    outputs = embed(network, examples, batch_size=_BATCH)
    return check_finite(outputs, f"network {network.name}: outputs", (len(examples), None))
