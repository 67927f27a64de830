"""Coded weights on their way in and out of a transformers folder.

In the file a coded weight is a tensor of bytes, ``<name>_coded``. While a model loads, the module whose weight it is
makes way for a `Holder` that takes the bytes; afterwards the module comes back with the weight that they stand for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isthmus.errors import BadArtifact, UnsupportedNetwork, misfit
from isthmus.network import Network
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Coded, decode

SUFFIX = "_coded"
_MOST_BYTES = 8  # a weight; plus what a small matrix takes for its tables
_SPARE_BYTES = 1 << 16


class Holder(nn.Module):
    """Stands for a linear map or an embedding until the bytes of its weight are there.

    Parameters
    ----------
    held : nn.Linear or nn.Embedding
    size : int
        Bytes.
    """

    def __init__(self, held: nn.Linear | nn.Embedding, size: int) -> None:
        super().__init__()
        self.held = (held,)  # in a tuple, it is no submodule: the file has no weight for it
        device = held.weight.device
        self.weight_coded = nn.Parameter(torch.empty(size, dtype=torch.uint8, device=device), requires_grad=False)
        self.register_parameter("bias", getattr(held, "bias", None))
        # transformers draws weights that a file does not have, also through the modules around this one.
        held.weight._is_hf_initialized = True  # type: ignore[attr-defined]

    @property
    def weight(self) -> torch.Tensor:
        """The weight that is not there yet: its shape only."""
        return self.held[0].weight

    def resolve(self, name: str, dtype: torch.dtype) -> nn.Module:
        """Return the module with its weight.

        Raises
        ------
        BadArtifact
            If the bytes are damaged or those of another matrix.
        """
        (held,) = self.held
        rows, columns = held.weight.shape
        try:
            matrix = decode(unpack(self.weight_coded.detach().cpu().numpy().tobytes(), (rows, columns)))
        except BadArtifact as error:
            raise BadArtifact(f"{name}: {error}") from None
        held.weight = nn.Parameter(torch.from_numpy(matrix).to(dtype))
        if self.bias is not None:
            held.bias = self.bias
        return held


def expect_coded(model: nn.Module, sizes: Mapping[str, Any], find: Any) -> None:
    """Let holders take the place of the modules whose weights are coded in the file.

    Parameters
    ----------
    sizes : mapping of str to int
        Bytes by name of the parameter, as the file's config has them; nothing of it is believed unchecked.
    find : callable
        From a saved name to the name in this model, or None where it has no such parameter.

    Raises
    ------
    BadArtifact
        If a name is not that of a weight that can be coded, or a size is out of proportion.
    """
    for saved, size in sizes.items():
        name = find(saved)
        if name is None:
            continue
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        if own != "weight" or not isinstance(module, nn.Linear | nn.Embedding):
            raise misfit(f"{name} is not the weight of a linear map or an embedding")
        if type(size) is not int or not 0 < size <= _MOST_BYTES * module.weight.numel() + _SPARE_BYTES:
            raise misfit(f"{name} of shape {list(module.weight.shape)} in {size} bytes")
        _put(model, path, Holder(module, size))


def resolve_coded(model: nn.Module) -> None:
    """Put the held modules back, with the weights that were loaded."""
    floating = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    dtype = next(floating, torch.float32)
    for path, module in list(model.named_modules()):
        if isinstance(module, Holder):
            _put(model, path, module.resolve(f"{path}.weight", dtype))


def write_coded(file: Path, codes: Mapping[str, bytes]) -> None:
    """Replace weights in a weight file by their bytes; all other weights become float16.

    Raises
    ------
    UnsupportedNetwork
        If a coded weight is not in the file under its own name.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name, code in codes.items():
        if tensors.pop(name, None) is None:
            raise UnsupportedNetwork(f"network: {name} has another name in a weight file, so it cannot be coded")
        tensors[name + SUFFIX] = torch.from_numpy(np.frombuffer(code, dtype=np.uint8).copy())
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(halves, file, metadata={"format": "pt"})


def read_codes(file: Path, sizes: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of the coded weights of a weight file."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return {name: opened.get_tensor(name + SUFFIX).tobytes() for name in sizes}


def with_codes(network: Network, codes: Mapping[str, Coded]) -> Network:
    """Return a network whose weights are what their codes stand for, and all others what float16 can say.

    Parameters
    ----------
    codes : mapping of str to Coded
        By name of the parameter.

    Returns
    -------
    Network
        With a model of its own; what is saved of it opens as the very same network.
    """
    model = copy.deepcopy(network.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in codes:
                parameter.copy_(torch.from_numpy(decode(codes[name])))
            else:
                parameter.copy_(parameter.half().float())
    return replace(network, model=model, codes={name: pack(coded) for name, coded in codes.items()})


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
