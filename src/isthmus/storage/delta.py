"""Deltas: a fine-tuned network as one file beside its base.

A matrix that was coded is in the file as a tensor of bytes, ``<name>_coded``; every other tensor that fine-tuning
changed is its difference in float16, ``<name>_half``. The header has the base's name and fingerprint, so that no other
base is taken for it, and the shape and rank of every matrix.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isthmus.errors import BadArtifact, BadInput
from isthmus.network import Network
from isthmus.storage.blobs import pack, unpack
from isthmus.storage.coded import Coded, Product, decode
from isthmus.storage.delta_file import HALF, Arrays, damaged, pack_delta, read_delta
from isthmus.storage.files import existing_parent, write_atomic, writing
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.holders import SUFFIX
from isthmus.storage.rounding import rounded_inputs


def check_delta_output(path: str | Path) -> None:
    """Check, before any work, that a delta can be written to ``path``.

    Raises
    ------
    BadInput
        If something is there already, or the place cannot be written to.
    """
    file = Path(path)
    if file.exists() or file.is_symlink():
        raise BadInput(f"output {file}: is there already; give a file that does not exist yet")
    place = existing_parent(file.parent)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise BadInput(f"output {file}: {place} is no folder that can be written to; give another place")


def tensors_of(network: Network) -> Arrays:
    """Return the tensors of a network's state by name, each that is shared once."""
    saved = network.model.state_dict()
    named = chain(network.model.named_parameters(), network.model.named_buffers())
    return {name: tensor.detach().cpu().numpy() for name, tensor in named if name in saved}


def matrices_of(network: Network) -> Arrays:
    """Return the tensors that a delta codes: the weights of two dimensions."""
    return {name: array for name, array in tensors_of(network).items() if array.ndim == 2 and array.dtype.kind == "f"}


def delta_bytes(base: Network, tuned: Network, codes: Mapping[str, Coded]) -> bytes:
    """Return the file that holds what turns ``base`` into ``tuned``.

    Parameters
    ----------
    codes : mapping of str to Coded
        Residuals by name of the matrix; a matrix without one stays as it is in the base.

    Raises
    ------
    BadInput
        If the networks' tensors differ in more than their values, a difference is too large for float16, or a code is
        not that of a matrix of theirs.
    """
    tensors = _halves(base, tuned)
    matrices = matrices_of(base)
    for name, code in codes.items():
        if name not in matrices or matrices[name].shape != code.shape:
            raise BadInput(f"{name}: the base has no matrix of this name and shape {list(code.shape)}; code another")
        tensors[name + SUFFIX] = np.frombuffer(pack(code), dtype=np.uint8)
    header = {
        "base": {"name": base.name, "fingerprint": fingerprint(base)},
        "settings": [tuned.pooling, tuned.normalize, tuned.max_length],
        "matrices": {name: [*code.shape, _rank(code)] for name, code in codes.items()},
    }
    return pack_delta(header, tensors)


def save_delta(base: Network, tuned: Network, path: str | Path, codes: Mapping[str, Coded]) -> int:
    """Write what turns ``base`` into ``tuned`` to a new file, as a whole or not at all, and return its bytes.

    Raises
    ------
    BadInput
        As in `delta_bytes` and `check_delta_output`.
    IsthmusError
        If the disk is full.
    """
    file = Path(path)
    check_delta_output(file)
    data = delta_bytes(base, tuned, codes)
    with writing(file, needed=len(data)):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, data)
    return len(data)


def load_delta(base: Network, path: str | Path) -> Network:
    """Return the fine-tuned network that a file makes of its base.

    Raises
    ------
    BadInput
        If there is no such file, or it was made for another base.
    BadArtifact
        If it is truncated, was changed after it was written, or is of a later version.
    """
    file = Path(path)
    header, tensors = read_delta(file)
    own = fingerprint(base)
    if header["base"]["fingerprint"] != own:
        name, digest = header["base"]["name"], header["base"]["fingerprint"]
        raise BadInput(
            f"delta {file}: was made for {name} (weights {digest[:12]}) and not for {base.name} (weights {own[:12]}); "
            "give the base that it was made for"
        )
    changes = {name: _change(file, base, header, name, array) for name, array in tensors.items()}
    model = copy.deepcopy(base.model)
    state = model.state_dict()
    with torch.no_grad():
        for name, change in changes.items():
            target = state[_own(name)]
            target.add_(torch.from_numpy(change))
            if not bool(torch.isfinite(target).all()):
                raise damaged(file, f"{_own(name)} would not be finite")
    pooling, normalize, length = header["settings"]
    found = base.with_model(model)
    return replace(
        found, name=f"{base.name}+{file.stem}", pooling=pooling, normalize=normalize, max_length=length, record={}
    )


def _own(stored: str) -> str:
    return stored.removesuffix(SUFFIX) if stored.endswith(SUFFIX) else stored.removesuffix(HALF)


def _rank(code: Coded) -> int:
    return code.left.shape[1] if isinstance(code, Product) else min(code.shape)


def _halves(base: Network, tuned: Network) -> Arrays:
    """Return the differences of what is no matrix, where there are any."""
    old, new = tensors_of(base), tensors_of(tuned)
    advice = f"give a network that was fine-tuned from {base.name}"
    if old.keys() != new.keys():
        raise BadInput(f"network {tuned.name}: {min(old.keys() ^ new.keys())} is in one of the two only; {advice}")
    if rounded_inputs(base.model) != rounded_inputs(tuned.model):
        raise BadInput(f"network {tuned.name}: rounds other activations than the base; {advice}")
    found: Arrays = {}
    for name, before in old.items():
        after = new[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            what = f"{before.dtype} {list(before.shape)} in the base, {after.dtype} {list(after.shape)} here"
            raise BadInput(f"network {tuned.name}: {name} is {what}; {advice}")
        if np.array_equal(before, after) or (before.ndim == 2 and before.dtype.kind == "f"):
            continue
        if before.dtype.kind != "f":
            raise BadInput(f"network {tuned.name}: {name} is of whole numbers, which differ from the base's; {advice}")
        with np.errstate(over="ignore", invalid="ignore"):
            half = (after - before).astype(np.float16)
        if not np.isfinite(half).all():
            raise BadInput(f"network {tuned.name}: {name} differs by more than float16 can say; {advice}")
        found[name + HALF] = half
    return found


def _change(file: Path, base: Network, header: Mapping[str, Any], stored: str, array: Any) -> Any:
    """Return what is added to a tensor of the base, float32."""
    name = _own(stored)
    tensor = base.model.state_dict().get(name)
    announced = header["matrices"].get(name)
    if tensor is None or not tensor.is_floating_point():
        raise damaged(file, f"{stored} is nothing of the base")
    if stored.endswith(HALF):
        if array.dtype != np.float16 or array.shape != tuple(tensor.shape) or announced is not None:
            raise damaged(file, f"{stored} does not fit {list(tensor.shape)}")
        return array.astype(np.float32)
    if not stored.endswith(SUFFIX) or array.dtype != np.uint8 or tensor.ndim != 2 or array.ndim != 1:
        raise damaged(file, f"{stored} is neither a code nor a difference")
    rows, columns = tensor.shape
    try:
        code = unpack(array.tobytes(), (rows, columns))
    except BadArtifact as error:
        raise BadArtifact(f"delta {file}: {name}: {error}") from None
    if announced != [rows, columns, _rank(code)]:
        raise damaged(file, f"{name} is announced as {announced} and of rank {_rank(code)}")
    return decode(code)
