"""The file of a delta: a safetensors file whose metadata has one entry, a JSON header with a digest over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.errors import BadArtifact, BadInput
from isthmus.storage.files import canonical
from isthmus.storage.holders import SUFFIX
from isthmus.storage.weights import read_header

DELTA_VERSION = 1
HALF = "_half"
_ENTRY = "isthmus_delta"
_POOLINGS = ("mean", "cls", "logits")
_LONGEST = 1 << 20  # tokens

Arrays = dict[str, np.ndarray[Any, Any]]


def pack_delta(header: Mapping[str, Any], tensors: Arrays) -> bytes:
    """Return a header (JSON, with ``base``, ``settings`` and ``matrices``) and tensors as the bytes of a file."""
    from safetensors.numpy import save

    body = {**header, "version": DELTA_VERSION}
    body["digest"] = _digest(body, tensors)
    data: bytes = save(tensors, metadata={_ENTRY: canonical(body).decode()})
    return data


def entry_bytes(name: str, shape: tuple[int, int]) -> int:
    """Return the most bytes that a coded matrix takes in a delta besides its code."""
    inner = json.dumps({name: [*shape, min(shape)]}, separators=(",", ":"))
    most = 10**12
    line = {name + SUFFIX: {"dtype": "U8", "shape": [most], "data_offsets": [most, most]}}
    return len(json.dumps(line, separators=(",", ":"))) + len(json.dumps(inner)) + 8


def read_delta(file: Path) -> tuple[dict[str, Any], Arrays]:
    """Return the header and the tensors of a file, sound as far as they can be without the base.

    Raises
    ------
    BadInput
        If there is no such file.
    BadArtifact
        If it is truncated, was changed after it was written, or is of a later version.
    """
    from safetensors import safe_open

    try:
        read_header(file)
        with safe_open(file, framework="np") as opened:
            text = (opened.metadata() or {}).get(_ENTRY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
    except OSError as error:
        raise BadInput(f"delta {file}: {error.strerror or error}; give a file that isthmus saved") from None
    except BadArtifact:
        raise
    except Exception as error:  # the reader has an exception of its own, and others for types that numpy lacks
        raise damaged(file, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if text is None:
        raise BadArtifact(f"delta {file}: holds no delta of isthmus; give a file that isthmus saved as one")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise damaged(file, "its header is not JSON") from None
    if not isinstance(header, dict) or type(header.get("version")) is not int:
        raise damaged(file, "its header has no version")
    if header["version"] > DELTA_VERSION:
        raise BadArtifact(f"delta {file}: version {header['version']} is newer than {DELTA_VERSION}; upgrade isthmus")
    _check_fields(file, header)
    coded = {name.removesuffix(SUFFIX) for name in tensors if name.endswith(SUFFIX)}
    if header["digest"] != _digest(header, tensors) or header["matrices"].keys() != coded:
        raise damaged(file, "its contents are not those that were written")
    return header, tensors


def _check_fields(file: Path, header: Mapping[str, Any]) -> None:
    base, settings, matrices = (header.get(name) for name in ("base", "settings", "matrices"))
    sound = (
        header.keys() == {"version", "base", "settings", "matrices", "digest"}
        and isinstance(base, dict)
        and base.keys() == {"name", "fingerprint"}
        and all(isinstance(value, str) for value in base.values())
        and isinstance(settings, list)
        and len(settings) == 3
        and settings[0] in _POOLINGS
        and type(settings[1]) is bool
        and type(settings[2]) is int
        and 0 < settings[2] <= _LONGEST
        and isinstance(matrices, dict)
    )
    if not sound or header["version"] < 1:
        raise damaged(file, "its header is not that of a delta")


def _digest(header: Mapping[str, Any], tensors: Arrays) -> str:
    body = {name: value for name, value in header.items() if name != "digest"}
    digest = hashlib.sha256(canonical(body))
    for name, array in sorted(tensors.items()):
        digest.update(canonical([name, str(array.dtype), list(array.shape)]))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def damaged(file: Path, reason: str) -> BadArtifact:
    """Return the error for a file that cannot be what was written."""
    return BadArtifact(f"delta {file}: truncated or damaged ({reason}); restore the file or make it again")
