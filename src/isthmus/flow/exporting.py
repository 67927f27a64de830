"""Export: write a network in a layout that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isthmus.errors import unknown
from isthmus.export.compressed import check_options, write_compressed_tensors
from isthmus.flow.verifying import bytes_on_disk
from isthmus.network import Network
from isthmus.storage.artifact import check_output

LAYOUTS = ("compressed-tensors",)


def check_export(out: Path, layout: str, bits: int, group: int | None = None) -> None:
    """Check, before a network is opened, that it could be written.

    Raises
    ------
    BadInput
        If the layout is unknown, it has no such bits or groups, or ``out`` is not empty or cannot be written to.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    check_options(bits, group)
    check_output(out)


def export(
    network: Network, out: Path, *, layout: str = "compressed-tensors", bits: int = 4, group: int | None = None
) -> dict[str, Any]:
    """Write a network as a folder in a layout that other programs read.

    Parameters
    ----------
    out : Path
        A folder that does not exist yet, or is empty.
    layout : {"compressed-tensors"}
    bits, group : int
        As for `isthmus.export.compressed.write_compressed_tensors`.

    Returns
    -------
    dict
        ``folder``, ``layout`` and ``bits``; ``bytes`` of the weight file and their ``share`` of the network's own; the
        names of linear maps whose own integers were ``taken``, that were ``rounded``, and that were ``kept`` as they
        are.

    Raises
    ------
    BadInput
        As in `check_export`, and if the layout cannot say the network's shape or hold its weights.
    IsthmusError
        If the disk is full.
    """
    check_export(out, layout, bits, group)
    written = write_compressed_tensors(network, out, bits, group)
    return {
        "folder": str(out),
        "layout": layout,
        "bits": bits,
        "bytes": written.bytes,
        "share": written.bytes / bytes_on_disk(network),
        "taken": list(written.taken),
        "rounded": list(written.rounded),
        "kept": list(written.kept),
    }
