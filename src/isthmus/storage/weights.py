"""Weight files: read their headers with suspicion, count their bytes, predict them exactly."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadArtifact, BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS_FILE = "model.safetensors"

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
"""Tensor name to its shape and dtype (a torch dtype or a safetensors name such as ``F32``)."""

# The order in which the format lays out tensors, last first, with bytes per element.
_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
_RANK = {name: rank for rank, name in enumerate(_SIZES)}
_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3", "int16": "I16",
    "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "float32": "F32",
    "complex64": "C64", "float64": "F64", "int64": "I64", "uint64": "U64",
}  # fmt: skip
_LONGEST_HEADER = 100_000_000


def _dtype_name(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    return name if name in _SIZES else _NAMES[name]


def _header(shapes: Shapes) -> tuple[bytes, int]:
    """Return the JSON header, padded to a multiple of eight bytes, and the bytes of data behind it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    named = {name: (tuple(shape), _dtype_name(dtype)) for name, (shape, dtype) in shapes.items()}
    for name in ordered(shapes):
        shape, dtype = named[name]
        end = position + math.prod(shape) * _SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8), position


def header_of(shapes: Shapes) -> bytes:
    """Return what stands before the tensors in a weight file: the header's length and the header."""
    text, _ = _header(shapes)
    return struct.pack("<Q", len(text)) + text


def ordered(shapes: Shapes) -> list[str]:
    """Return names in the order in which the format lays tensors out."""
    named = {name: _dtype_name(dtype) for name, (_, dtype) in shapes.items()}
    return sorted(named, key=lambda name: (-_RANK[named[name]], name))


def header_bytes(shapes: Shapes) -> int:
    """Return the bytes in front of the tensors in a weight file: the header's length (8 bytes) and the header.

    Parameters
    ----------
    shapes : mapping of str to (shape, dtype)
        What is saved, by name; see ``saved_shapes``.
    """
    return 8 + len(_header(shapes)[0])


def predicted_bytes(shapes: Shapes) -> int:
    """Return the exact size of the ``model.safetensors`` that would hold these tensors.

    Parameters
    ----------
    shapes : mapping of str to (shape, dtype)
        What is saved, by name; see ``saved_shapes``.
    """
    header, data = _header(shapes)
    return 8 + len(header) + data


def saved_shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of every tensor that is written for a transformers model, by its name in the model.

    Tied weights are written once, under the name that transformers gives them in a file.
    """
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state: dict[str, torch.Tensor] = dict(model.state_dict())
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def weight_files(folder: str | Path) -> tuple[Path, ...]:
    """Return the weight files of a transformers folder: the safetensors files, else the older ``.bin`` files."""
    place = Path(folder)
    found = sorted(place.glob("model*.safetensors"))
    return tuple(found or sorted(place.glob("pytorch_model*.bin")))


def weight_bytes(folder: str | Path) -> int:
    """Return the bytes on disk of a folder's weight files."""
    return sum(path.stat().st_size for path in weight_files(folder))


def read_header(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read and check the header of a safetensors file without loading a tensor.

    Returns
    -------
    dict
        ``{name: {"dtype", "shape", "data_offsets"}}``.

    Raises
    ------
    BadArtifact
        If lengths, offsets or names do not add up to the file's size.
    """
    file = Path(path)
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise _damaged(file, f"its header would be {length} bytes of {size}")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise _damaged(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a table")
    header.pop("__metadata__", None)
    spans = [_span(file, name, entry) for name, entry in header.items()]
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise _damaged(file, "its tensors overlap or leave holes")
        position = end
    if position != size - 8 - length:
        raise _damaged(file, f"it holds {size - 8 - length} bytes of tensors where {position} are announced")
    return header


def _span(file: Path, name: str, entry: Any) -> tuple[int, int]:
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets, size = fields.get("shape"), fields.get("data_offsets"), _SIZES.get(str(fields.get("dtype")))
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if size is None or any(type(number) is not int or number < 0 for number in numbers) or len(offsets or ()) != 2:
        raise _damaged(file, f"tensor {name} is not described properly")
    start, end = offsets  # type: ignore[misc]
    if end - start != math.prod(shape) * size:  # type: ignore[arg-type]
        raise _damaged(file, f"tensor {name} of shape {shape} does not fill its {end - start} bytes")
    return start, end


def _damaged(file: Path, reason: str) -> BadArtifact:
    return BadArtifact(f"{file}: truncated or damaged ({reason}); restore the file or make the folder again")


def check_weight_files(folder: str | Path) -> None:
    """Check that a folder has weights and that the headers of its safetensors files are sound.

    Raises
    ------
    BadInput
        If there are none.
    BadArtifact
        If one is truncated or damaged.
    """
    place = Path(folder)
    files = weight_files(place)
    if not files:
        raise BadInput(f"network {place}: holds no {WEIGHTS_FILE}; give a folder with the weights of a model")
    index = place / f"{WEIGHTS_FILE}.index.json"
    if files[0].suffix == ".safetensors":
        for path in files:
            read_header(path)
    if index.exists() and not (place / WEIGHTS_FILE).exists():
        _check_shards(place, index)


def _check_shards(place: Path, index: Path) -> None:
    """Check that every file that the index of a sharded model names is there."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(index, "not an index of weight files") from None
    missing = sorted(str(name) for name in names if not (place / str(name)).is_file())
    if missing:
        raise BadArtifact(f"{place / missing[0]}: missing, though {index.name} names it; restore the file")


def check_weights(weights: Mapping[str, torch.Tensor] | str | Path, name: str = "") -> None:
    """Check that every weight is a finite number.

    Parameters
    ----------
    weights : mapping of str to Tensor, or a folder
    name : str
        What to call the network in the message.

    Raises
    ------
    BadInput
        Naming the first tensor that holds NaN or infinity.
    """
    import torch

    if isinstance(weights, str | Path):
        from safetensors.torch import load_file

        check_weight_files(weights)
        for path in weight_files(weights):
            if path.suffix == ".safetensors":
                check_weights(load_file(path), name or str(weights))
        return
    for tensor_name, tensor in weights.items():
        # A finite sum means that every entry is finite; one that is not may be an overflow, so then each is looked at.
        if not tensor.is_floating_point() or torch.isfinite(tensor.sum()):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise BadInput(
                f"network {name or 'in memory'}: {bad} of {tensor.numel()} weights of {tensor_name} are NaN or "
                "infinite; restore the weights from a good checkpoint"
            )
