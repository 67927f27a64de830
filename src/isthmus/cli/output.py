"""Writing what the commands found: to stdout, or to a file that appears whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path


def print_text(text: str) -> None:
    """Write text and a line's end to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write_text(path: Path, text: str) -> None:
    """Write a file in one step.

    Raises
    ------
    BadInput
        If it may not be written there.
    IsthmusError
        If the disk is full.
    """
    from isthmus.storage.files import write_atomic, writing

    data = text.encode()
    with writing(path, needed=len(data)):
        write_atomic(path, data)
