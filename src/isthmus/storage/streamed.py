"""Weights that are too many to hold: read tensor by tensor from a folder's files, and written so into one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import BadArtifact, BadInput
from isthmus.storage.weights import Shapes, header_of, ordered, read_header, weight_files


class TensorFiles:
    """The tensors of a transformers folder, by name, of which none is held.

    Raises
    ------
    BadInput
        If the folder has no safetensors files.
    BadArtifact
        If a file is damaged, or a tensor is in two of them.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self._files: dict[str, Path] = {}
        files = [path for path in weight_files(folder) if path.suffix == ".safetensors"]
        if not files:
            raise BadInput(f"{folder}: has no safetensors files; give a folder whose weights are in such files")
        for path in files:
            for name, entry in read_header(path).items():
                if name in self._files:
                    raise BadArtifact(f"{path}: {name} is in {self._files[name].name} as well; restore the folder")
                self._files[name] = path
                self.shapes[name] = (tuple(entry["shape"]), str(entry["dtype"]))

    def load(self, name: str) -> Tensor:
        """Return a tensor, read now.

        Raises
        ------
        BadInput
            If it is not finite.
        """
        from safetensors import safe_open

        with safe_open(self._files[name], "pt") as file:
            # A copy: what is mapped would count as held, page by page, for as long as the tensor lives.
            tensor: Tensor = file.get_tensor(name).clone()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BadInput(f"{self._files[name]}: {name} holds NaN or infinity; restore the file")
        return tensor


def write_streamed(path: Path, shapes: Shapes, load: Callable[[str], Tensor]) -> None:
    """Write a safetensors file of which one tensor is held at a time.

    Parameters
    ----------
    shapes : mapping of str to (shape, dtype)
        What is written, by name.
    load : callable
        From a name to the tensor.

    Raises
    ------
    ValueError
        If a tensor is of another shape than was said.
    """
    with path.open("wb") as file:
        file.write(header_of(shapes))
        for name in ordered(shapes):
            tensor = load(name).contiguous()
            if tuple(tensor.shape) != tuple(shapes[name][0]):
                raise ValueError(f"{name} is of shape {tuple(tensor.shape)}, not {tuple(shapes[name][0])}")
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        file.flush()
        os.fsync(file.fileno())


def copy_small_files(source: Path, target: Path, data: Mapping[str, Any]) -> None:
    """Copy what lies beside the weights of a transformers folder, with another ``config.json``."""
    import json
    import shutil

    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", ".bin") or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in ("config.json", "isthmus.json", "report.html"):
            shutil.copyfile(path, target / path.name)
    (target / "config.json").write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
