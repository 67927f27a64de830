"""Inputs to run a network on where no data are at hand: to follow its tensors, to count, to check."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput

if TYPE_CHECKING:
    from isthmus.network import Network

_USUAL_SIZE = 224


def reads_images(network: Network) -> bool:
    """Return whether a network takes images: because it says so, by its main input, or because it has no config."""
    return network.images is not None or model_reads_images(network.model)


def model_reads_images(model: nn.Module) -> bool:
    """Return whether a model takes images, as far as it can be told from the model alone."""
    if not hasattr(getattr(model, "config", None), "model_type"):
        return True
    return getattr(model, "main_input_name", "") == "pixel_values"


def random_inputs(network: Network, batch: int = 1, *, seed: int = 0, length: int = 12) -> dict[str, Tensor]:
    """Return random inputs by the names under which the network takes them.

    Returns
    -------
    dict of str to Tensor
        Images as ``pixel_values`` (or under the name of a plain module's first argument), shape
        ``(batch, channels, height, width)``, float32, noise around a colour; tokens as ``input_ids`` and
        ``attention_mask``.

    Raises
    ------
    BadInput
        If a module outside transformers does not say what images it wants.
    """
    if not reads_images(network):
        return random_tokens(network.model, batch, length, seed)
    if network.images is not None:
        wanted = network.images
        shape = (wanted.channels, wanted.height, wanted.width)
    else:
        shape = _config_shape(network.model, network.name)
    return _image_inputs(network.model, shape, batch, seed)


def random_images(model: nn.Module, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Return random images of the size that a model's config names, as `random_inputs` does."""
    return _image_inputs(model, _config_shape(model, type(model).__name__), batch, seed)


def _image_inputs(model: nn.Module, shape: tuple[int, int, int], batch: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Noise alone looks alike once it is pooled: every image has colours of its own.
    colours = torch.randn((batch, shape[0], 1, 1), generator=generator)
    inputs = {input_name(model): torch.randn((batch, *shape), generator=generator) + colours}
    accepted = inspect.signature(model.forward).parameters
    if "noise" in accepted:  # masked autoencoders draw which patches they see; the same ones each time
        inputs["noise"] = torch.rand((batch, _patches(model, shape)), generator=generator)
    return inputs


def input_name(model: nn.Module) -> str:
    """Return the name of the argument under which a model takes images."""
    accepted = list(inspect.signature(model.forward).parameters)
    return "pixel_values" if "pixel_values" in accepted else accepted[0]


def random_tokens(model: nn.Module, batch: int, length: int, seed: int) -> dict[str, Tensor]:
    """Return random token ids of shape ``(batch, length)``, none special where the config says which are."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    names = ("pad", "bos", "eos", "cls", "sep")
    special = {getattr(config, f"{name}_token_id", None) for name in names}
    words = torch.tensor([token for token in range(int(config.vocab_size)) if token not in special])
    most = int(getattr(config, "max_position_embeddings", length) or length)
    ids = words[torch.randint(len(words), (batch, min(length, most)), generator=generator)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _config_shape(model: nn.Module, name: str) -> tuple[int, int, int]:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise BadInput(f"network {name}: does not say what images it wants; give Network(..., images=ImageInput(...))")
    size = getattr(config, "image_size", None) or _USUAL_SIZE
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    return int(getattr(config, "num_channels", 3)), height, width


def _patches(model: nn.Module, shape: tuple[int, int, int]) -> int:
    config: Any = model.config
    size = config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    return int((shape[1] // height) * (shape[2] // width))
