"""Files: write so that a crash or a full disk leaves either the old state or the new one, never something between."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput, IsthmusError

LEFT_SECONDS = 3600.0
"""A partial file that nobody has added to for so long belongs to a process that was killed."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(data: Any) -> bytes:
    """Return data as JSON with sorted keys and no spaces, for hashing.

    Raises
    ------
    TypeError, ValueError
        If it cannot be written as strict JSON.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all; of several processes that write the same one, the last one's stays."""
    # A name of its own. Not the process's number: containers that share a folder number theirs alike.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _remove_left(path)
    sync(path.parent)


def _remove_left(path: Path) -> None:
    """Remove what processes that were killed have left of a file."""
    for left in path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        with suppress(OSError):  # another process may be quicker
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # The safetensors writer reports the same through an exception of its own, with the number in its text.
    return type(error).__module__.startswith("safetensors") and "os error 28" in str(error)


@contextmanager
def writing(target: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk, or a place that cannot be written to, into one clear line.

    Parameters
    ----------
    target : Path
        What is being written.
    needed : int
        How many bytes it takes, where known; checked before anything is written.

    Raises
    ------
    IsthmusError
        If the disk is full.
    BadInput
        If the place cannot be written to.
    """
    place = existing_parent(target)
    advice = f"free at least {max(needed, 1_000_000) / 1e6:.0f} MB there or give another place"
    free = shutil.disk_usage(place).free
    if needed > free:
        raise IsthmusError(
            f"{target}: the disk has {free / 1e6:.0f} MB left, {needed / 1e6:.0f} MB are needed; {advice}"
        )
    try:
        yield
    except Exception as error:
        if _is_full(error):
            raise IsthmusError(f"{target}: the disk is full, nothing was saved; {advice}") from None
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise BadInput(f"{target}: cannot be written ({reason}); give a place you can write to") from None
        raise


def existing_parent(path: Path) -> Path:
    """Return the nearest folder above (or at) ``path`` that exists."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return place
