"""Tiny networks whose tokens are narrowed, for tests: where their tokens are, and policies from a line of text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

import networks
import pictured
from isthmus.bottlenecks.tokens import registry
from isthmus.bottlenecks.tokens.narrowing import Tokens
from isthmus.bottlenecks.tokens.policy import TokenNarrowing
from isthmus.network import Network
from isthmus.sites.inputs import random_inputs

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
WHERE = {
    "vit": Tokens("vit.layers", 4, 17, 1, False),
    "deit": Tokens("deit.layers", 4, 18, 2, False),
    "bert": Tokens("encoder.layer", 4, 12, 1, True),
    "bert-classifier": Tokens("bert.encoder.layer", 4, 12, 1, True),
}


def network_of(name: str) -> Network:
    """Return a random network of four layers."""
    if name == "vit":
        return pictured.vit(num_hidden_layers=4)
    if name == "deit":
        config = DeiTConfig(**SIZES, image_size=16, patch_size=4, num_channels=1, num_labels=3)
        model = pictured.scattered(DeiTForImageClassificationWithTeacher(config))
        return Network("deit", model, None, "logits", False, 1, images=pictured.GREY)
    return networks.tiny(name, num_hidden_layers=4)


def inputs_of(name: str, batch: int = 3) -> dict[str, torch.Tensor]:
    """Return inputs: images, or texts of which the last is half padding."""
    if name.startswith("bert"):
        return networks.tokens(batch=batch, length=12)
    return random_inputs(network_of(name), batch)


def policy(spec: str) -> TokenNarrowing:
    """Return a policy from a line of text."""
    score, action, kind, value = registry.parsed(spec)
    return TokenNarrowing(score, action, registry.scheduled(kind, value))


def ran(network: Network, inputs: dict[str, Any]) -> torch.Tensor:
    """Return the output of a network, or what is pooled of it, without gradients."""
    from isthmus.network import outputs

    with torch.inference_mode():
        return outputs(network, inputs)
