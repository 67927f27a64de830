"""A model around a config that says its shape, so that programs which know nothing of isthmus can build it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.network import Network
from isthmus.storage.narrowing import built


def plain_model(network: Network) -> Any:
    """Return the model around a config of its own that says its shape, so that transformers can build it unaided.

    Raises
    ------
    BadInput
        If no config can: it was narrowed by another share at another place, or by heads without width.
    """
    model: Any = copy.copy(network.model)  # the same modules and weights; only the config is another
    model.config = copy.deepcopy(network.model.config)
    try:
        if _shape(built(model)) != _shape(model):
            _say_shape(network, model.config)
        fits = _shape(built(model)) == _shape(model)
    except (UnsupportedNetwork, ValueError):
        fits = False
    if not fits:
        raise BadInput(
            f"network {network.name}: is narrowed unevenly, which config.json cannot say to other programs; "
            "give the original, or one narrowed by the same at every layer"
        )
    return model


def _shape(model: nn.Module) -> tuple[dict[str, torch.Size], dict[str, int]]:
    """Return the shapes of a model's parameters and the whole numbers of its modules, save the places of layers."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    numbers = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is int and name != "layer_idx"
    }
    return shapes, numbers


def _say_shape(network: Network, config: Any) -> None:
    from isthmus.sites.discovery import discover

    neurons = "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"
    fields = {"width": "hidden_size", "heads": "num_attention_heads", "neurons": neurons, "layers": "num_hidden_layers"}
    for site in discover(network):
        field = "embedding_size" if site.name == "embedding_width" else fields.get(site.kind)
        if field is not None:  # where layers differ, the last one's size stands and is found not to fit
            setattr(config, field, site.units)
    model: Any = network.model
    config.vocab_size = int(model.get_input_embeddings().weight.shape[0])
