"""Export: write a network in a layout that other programs read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput, unknown
from isthmus.export.compressed import check_options, write_compressed_tensors
from isthmus.export.engines import ENGINES
from isthmus.export.quantized import CALIBRATED, FLOAT, GROUP, check_precision
from isthmus.export.saved import save_export
from isthmus.flow.verifying import bytes_on_disk
from isthmus.network import Network
from isthmus.storage.artifact import check_output, save_artifact, update_record
from isthmus.storage.files import writing
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task

COMPRESSED = "compressed-tensors"
LAYOUTS = (COMPRESSED, *ENGINES)
BITS = 4
"""Of the integers in compressed-tensors."""


def check_export(
    out: Path,
    layout: str,
    *,
    bits: int | None = None,
    precision: str | None = None,
    group: int | None = None,
    calibrated: bool = True,
) -> None:
    """Check, before a network is opened, that it could be written.

    Parameters
    ----------
    calibrated : bool
        Whether there is a task whose texts activations can be calibrated on.

    Raises
    ------
    BadInput
        If the layout is unknown, it has no such bits, precision or groups, or ``out`` is not empty or cannot be written
        to.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if layout == COMPRESSED:
        if precision is not None:
            raise BadInput(f"precision {precision}: {layout} holds integers of so many bits; give --bits 4 or 8")
        check_options(BITS if bits is None else bits, group)
    else:
        if bits is not None:
            raise BadInput(f"bits {bits}: {layout} computes in a precision; give for example --precision int8")
        check_precision(layout, precision or FLOAT)
        if group is not None and (precision != "int4" or group < 1):
            raise BadInput(f"group {group}: columns share a scale in int4 only, 1 or more of them; leave it away")
        if precision == CALIBRATED and not calibrated:
            raise BadInput(
                f"precision {precision}: activations are calibrated on texts; give some with --task text:FILE"
            )
    check_output(out)


def export(
    network: Network,
    out: Path,
    *,
    layout: str = COMPRESSED,
    bits: int | None = None,
    precision: str | None = None,
    group: int | None = None,
    task: Task | None = None,
) -> dict[str, Any]:
    """Write a network as a folder in a layout that other programs read.

    Parameters
    ----------
    out : Path
        A folder that does not exist yet, or is empty.
    layout : {"compressed-tensors", "openvino", "onnxruntime"}
        For an engine, the folder is an artifact that holds the engine's file as well: `isthmus.compare` measures that.
    bits : int, optional
        Of the integers in compressed-tensors: 4 (by default) or 8.
    precision : str, optional
        What an engine computes in; see `isthmus.export.quantized`. By default float32.
    group : int, optional
        Columns that share a scale, in compressed-tensors and in ``int4``.
    task : Task, optional
        On whose training texts ``w8a8`` is calibrated.

    Returns
    -------
    dict
        ``folder`` and ``layout``; ``bytes`` of the file and their ``share`` of the network's own weight file. In
        compressed-tensors ``bits``, and the names of linear maps whose own integers were ``taken``, that were
        ``rounded``, and that were ``kept`` as they are; for an engine ``precision`` and ``file``.

    Raises
    ------
    BadInput
        As in `check_export`, and if the layout cannot say the network's shape or hold its weights.
    IsthmusError
        If the disk is full.
    """
    check_export(out, layout, bits=bits, precision=precision, group=group, calibrated=task is not None)
    if layout == COMPRESSED:
        made = _compressed(network, out, BITS if bits is None else bits, group)
    else:
        made = _for_engine(network, out, layout, precision or FLOAT, GROUP if group is None else group, task)
    return {"folder": str(out), "layout": layout, **made, "share": made["bytes"] / bytes_on_disk(network)}


def _compressed(network: Network, out: Path, bits: int, group: int | None) -> dict[str, Any]:
    written = write_compressed_tensors(network, out, bits, group)
    found = {"taken": written.taken, "rounded": written.rounded, "kept": written.kept}
    return {"bits": bits, "bytes": written.bytes, **{how: list(names) for how, names in found.items()}}


def _for_engine(
    network: Network, out: Path, engine: str, precision: str, group: int, task: Task | None
) -> dict[str, Any]:
    """Write an artifact with the engine's file in it, under another name until both are there."""
    work = out.absolute().with_name(f".{out.absolute().name}.export")
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was killed
    try:
        known = {name: value for name, value in network.record.items() if name != "exports"}
        save_artifact(network, work, {"network": network.name, **known})
        texts = () if task is None else task.require_train()
        with writing(out):
            exports = save_export(open_network(work), engine, precision, texts, work, group=group)
        update_record(work, {"exports": exports})
        if out.exists():
            out.rmdir()
        os.rename(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    entry = exports[engine]
    return {"precision": precision, "file": str(out / entry["file"]), "bytes": entry["bytes"]}
