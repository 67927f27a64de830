"""compressed-tensors: linear maps of 4 or 8 bits in the layout that transformers and vLLM read.

A matrix ``(rows, columns)`` becomes ``weight_packed``, its integers side by side in words of 32 bits; ``weight_scale``,
a scale for each row and group of columns; and ``weight_shape``. ``quantization_config`` in config.json says so (format
``pack-quantized``). Products are then computed in floating point: what is saved is memory, and the time to read it.

transformers opens such a folder where the package compressed-tensors is installed; nothing here needs it. ModernBERT
opens only with ``quantization_config=CompressedTensorsConfig(dequantize=True)``.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.network import Network
from isthmus.storage.artifact import check_output
from isthmus.storage.blobs import unpack
from isthmus.storage.coded import Uniform, scale_of, stretch
from isthmus.storage.files import writing
from isthmus.storage.narrowing import built
from isthmus.storage.sentences import write_sentence_files
from isthmus.storage.weights import WEIGHTS_FILE, check_weights

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

WORD = 32
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SHRINK = np.linspace(0.6, 1.1, 26)
"""Scales that are tried, as shares of the one at which the largest weight takes the largest integer."""


@dataclass(frozen=True)
class CompressedTensors:
    """What was written.

    Parameters
    ----------
    folder : Path
    bytes : int
        Of the weight file.
    taken : tuple of str
        Matrices whose own integers and scales were written: their codes fit the layout.
    rounded : tuple of str
        Matrices that were rounded for the file.
    kept : tuple of str
        Linear maps that stay in floating point.
    """

    folder: Path
    bytes: int
    taken: tuple[str, ...]
    rounded: tuple[str, ...]
    kept: tuple[str, ...]


def write_compressed_tensors(
    network: Network, folder: str | Path, bits: int = 4, group: int | None = None, *, dtype: str = "float16"
) -> CompressedTensors:
    """Write a network as a transformers folder whose linear maps are integers in the compressed-tensors layout.

    A matrix that the network's plan has coded as integers of so many bits, with scales that are the same all over each
    group, is written as it is. Any other is rounded to nearest, with the scale of least squared error.

    Parameters
    ----------
    network : Network
        Not narrowed, or narrowed by the same everywhere, so that config.json can say its shape.
    folder : str or Path
        Does not exist yet, or is empty.
    bits : {4, 8}
    group : int, optional
        Columns that share a scale; 0 for a scale a row. By default 32 columns for 4 bits and a row for 8. Matrices
        whose columns it does not divide stay in floating point.
    dtype : {"float16", "bfloat16", "float32"}
        Of the scales and of all that is not packed, embeddings among it.

    Returns
    -------
    CompressedTensors

    Raises
    ------
    BadInput
        If an option cannot be used, the shape cannot be said, no matrix can be packed, a weight is too large for
        ``dtype`` or not finite, or the folder cannot be written to.
    IsthmusError
        If the disk is full.
    """
    size = _check_options(bits, group, dtype)
    path = Path(folder)
    check_output(path)
    check_weights(network.model.state_dict(), network.name)
    model = plain_model(network)
    partial = path.absolute().with_name(f".{path.absolute().name}.partial")
    try:
        with writing(path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            written = _write_network(network, model, partial, path, (bits, size), DTYPES[dtype])
            if path.exists():
                path.rmdir()
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return written


def _check_options(bits: int, group: int | None, dtype: str) -> int:
    if bits not in (4, 8):
        raise BadInput(f"bits {bits}: the layout is read with 4 or 8; give one of these")
    if group is not None and group < 0:
        raise BadInput(f"group {group}: is no number of columns; give for example 32, or 0 for a scale a row")
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r}: is none of {', '.join(DTYPES)}; give one of these")
    return (32 if bits == 4 else 0) if group is None else group


def _write_network(
    network: Network, model: Any, place: Path, path: Path, layout: tuple[int, int], dtype: torch.dtype
) -> CompressedTensors:
    from safetensors.torch import load_file, save_file

    model.save_pretrained(place)
    tensors = load_file(place / WEIGHTS_FILE)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    written: dict[str, list[str]] = {"taken": [], "rounded": [], "kept": []}
    for name in linear:
        key = f"{name}.weight"
        if key not in tensors or (layout[1] and tensors[key].shape[1] % layout[1]):
            written["kept"].append(name)
            continue
        parts, how = _pack_matrix(tensors.pop(key).float().numpy(), network.codes.get(key), layout, dtype)
        tensors.update({f"{name}.{part}": tensor for part, tensor in parts.items()})
        written[how].append(name)
    if len(written["kept"]) == len(linear):
        raise BadInput(f"group {layout[1]}: divides the columns of no linear map; give a divisor of its width, or 0")
    narrow = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
    save_file(narrow, place / WEIGHTS_FILE, metadata={"format": "pt"})
    (place / WEIGHTS_FILE).chmod(0o644)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    config |= {
        "dtype": str(dtype).removeprefix("torch."),
        "quantization_config": quantization_config(*layout, written["kept"]),
    }
    config.pop("_name_or_path", None)
    (place / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if network.tokenizer is not None:
        tokenizer = copy.deepcopy(network.tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:  # the settings of its last call are none of the network's
            backend.no_padding()
            backend.no_truncation()
        tokenizer.save_pretrained(place)
    write_sentence_files(network, place)
    names = {how: tuple(found) for how, found in written.items()}
    return CompressedTensors(path, (place / WEIGHTS_FILE).stat().st_size, **names)


def quantization_config(bits: int, group: int, ignore: list[str]) -> dict[str, Any]:
    """Return what config.json says of the layout.

    Parameters
    ----------
    bits, group : int
        As for `write_compressed_tensors`; a group of 0 is a scale a row.
    ignore : list of str
        Linear maps that stay in floating point.
    """
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "channel",
        "group_size": group or None,
        "dynamic": False,
    }
    schemes = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": schemes},
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def _pack_matrix(
    weight: Floats, code: bytes | None, layout: tuple[int, int], dtype: torch.dtype
) -> tuple[dict[str, Tensor], str]:
    """Return the tensors that stand for a matrix, and whether its own code was taken."""
    found = None if code is None else _from_code(code, weight.shape, *layout)
    if found is None:
        how, (integers, scales) = "rounded", round_to_nearest(weight, *layout, dtype)
    else:
        how, (integers, scales) = "taken", found
    tensors = {
        "weight_packed": torch.from_numpy(pack_words(integers, layout[0])),
        "weight_scale": torch.from_numpy(scales),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    return tensors, how


def round_to_nearest(weight: Floats, bits: int, group: int, dtype: torch.dtype) -> tuple[Integers, Floats]:
    """Round a matrix with the scales of least squared error.

    Parameters
    ----------
    weight : ndarray of float32, shape ``(rows, columns)``
    bits, group : int
        As for `write_compressed_tensors`; the group divides the columns.
    dtype : torch.dtype
        Scales are rounded to it before the integers are chosen.

    Returns
    -------
    integers : ndarray of int32, shape ``(rows, columns)``
        From ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``.
    scales : ndarray of float32, shape ``(rows, columns / group)``, or ``(rows, 1)`` for a group of 0
    """
    rows, columns = weight.shape
    half = 1 << (bits - 1)
    grouped = weight.reshape(rows, -1, group or columns)
    largest = np.abs(grouped).max(-1, keepdims=True) / (half - 1)
    scales = best = np.zeros_like(largest)
    for share in _SHRINK:
        # Between the smallest normal number and nothing, halves lose their digits.
        trial = torch.from_numpy((share * largest).astype(np.float32)).clamp(min=torch.finfo(dtype).tiny)
        tried: Floats = trial.to(dtype).float().numpy()
        integers = np.clip(np.rint(grouped / tried), -half, half - 1)
        error = ((integers * tried - grouped) ** 2).sum(-1, keepdims=True)
        better = (error < best) | (scales == 0)
        scales, best = np.where(better, tried, scales), np.where(better, error, best)
    integers = np.clip(np.rint(grouped / scales), -half, half - 1).astype(np.int32)
    return integers.reshape(rows, columns), scales[..., 0]


def pack_words(integers: Integers, bits: int) -> Integers:
    """Put the integers of each row side by side in words of 32 bits, the first in the lowest bits.

    Parameters
    ----------
    integers : ndarray of int32, shape ``(rows, columns)``
        From ``-2**(bits - 1)``, which is stored as 0.
    bits : {4, 8}

    Returns
    -------
    ndarray of int32, shape ``(rows, ceil(columns * bits / 32))``
        What is left of the last word is 0.
    """
    rows, columns = integers.shape
    held = WORD // bits
    stored = (integers + (1 << (bits - 1))).astype(np.uint32)
    filled = np.pad(stored, ((0, 0), (0, -columns % held))).reshape(rows, -1, held)
    shifts = np.arange(held, dtype=np.uint32) * np.uint32(bits)
    words: Integers = np.bitwise_or.reduce(filled << shifts, axis=-1).view(np.int32)
    return words


def _from_code(code: bytes, shape: tuple[int, ...], bits: int, group: int) -> tuple[Integers, Floats] | None:
    """Return a code's own integers and scales, or None where the layout cannot hold them."""
    rows, columns = shape
    coded = unpack(code, (rows, columns))
    if not isinstance(coded, Uniform) or coded.zeros is not None or coded.outliers is not None:
        return None
    half = 1 << (bits - 1)
    if coded.integers.min() < -half or coded.integers.max() >= half:
        return None
    scales = np.ones(coded.shape, dtype=np.float32)
    for grid in coded.scales:
        scales *= stretch(scale_of(grid), coded.shape)
    grouped = scales.reshape(rows, -1, group or columns)
    return (coded.integers, grouped[..., 0]) if (grouped == grouped[..., :1]).all() else None


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not cast.isfinite().all():
        raise BadInput(f"{name}: holds numbers too large for {str(dtype).removeprefix('torch.')}; give dtype bfloat16")
    return cast.contiguous()


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
