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

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.export.integers import Floats, own_integers, pack_words, round_to_nearest, shared_group
from isthmus.export.plain import plain_model
from isthmus.network import Network
from isthmus.storage.artifact import check_output
from isthmus.storage.files import writing
from isthmus.storage.rounding import rounded_inputs
from isthmus.storage.sentences import write_sentence_files
from isthmus.storage.weights import WEIGHTS_FILE, check_weights

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
        Columns that share a scale; 0 for a scale a row. By default the most with which every code that fits is written
        as it is; without such a code 32 for 4 bits and a row for 8. Matrices whose columns it does not divide stay in
        floating point.
    dtype : {"float16", "bfloat16", "float32"}
        Of the scales and of all that is not packed, embeddings among it.

    Returns
    -------
    CompressedTensors

    Raises
    ------
    BadInput
        If an option cannot be used, activations are rounded, the shape cannot be said, no matrix can be packed, a
        weight is too large for ``dtype`` or not finite, or the folder cannot be written to.
    IsthmusError
        If the disk is full.
    """
    check_options(bits, group, dtype)
    path = Path(folder)
    check_output(path)
    check_weights(network.model.state_dict(), network.name)
    if rounded_inputs(network.model):
        raise BadInput(f"compressed-tensors: {network.name} rounds its activations; export it in float32")
    model = plain_model(network)
    partial = path.absolute().with_name(f".{path.absolute().name}.partial")
    try:
        with writing(path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            size = _default_group(network, bits) if group is None else group
            written = _write_network(network, model, partial, path, (bits, size), DTYPES[dtype])
            if path.exists():
                path.rmdir()
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return written


def check_options(bits: int, group: int | None = None, dtype: str = "float16") -> None:
    """Check the options of `write_compressed_tensors` before any work.

    Raises
    ------
    BadInput
        If one of them cannot be used.
    """
    if bits not in (4, 8):
        raise BadInput(f"bits {bits}: the layout is read with 4 or 8; give one of these")
    if group is not None and group < 0:
        raise BadInput(f"group {group}: is no number of columns; give for example 32, or 0 for a scale a row")
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r}: is none of {', '.join(DTYPES)}; give one of these")


def _default_group(network: Network, bits: int) -> int:
    named = [(f"{name}.weight", module) for name, module in network.model.named_modules()]
    linear = {name: module for name, module in named if isinstance(module, nn.Linear) and name in network.codes}
    shapes = ((network.codes[name], (module.out_features, module.in_features)) for name, module in linear.items())
    shared = shared_group(shapes, bits)
    return (32 if bits == 4 else 0) if shared is None else shared


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
    _write_tokenizer(network, place)
    write_sentence_files(network, place)
    names = {how: tuple(found) for how, found in written.items()}
    return CompressedTensors(path, (place / WEIGHTS_FILE).stat().st_size, **names)


def _write_tokenizer(network: Network, place: Path) -> None:
    if network.tokenizer is None:
        return
    tokenizer = copy.deepcopy(network.tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # the settings of its last call are none of the network's
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(place)


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
    found = None if code is None else own_integers(code, (weight.shape[0], weight.shape[1]), *layout)
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


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not cast.isfinite().all():
        raise BadInput(f"{name}: holds numbers too large for {str(dtype).removeprefix('torch.')}; give dtype bfloat16")
    return cast.contiguous()
