"""What is narrowed without a plan of units or training: written, opened again and measured beside the original."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isthmus.flow import record as records
from isthmus.flow.verifying import compare_networks
from isthmus.network import Network
from isthmus.progress import Progress
from isthmus.storage.artifact import save_artifact, update_record
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task


def write_and_measure(
    original: Network,
    small: Network,
    task: Task,
    out: Path,
    described: Mapping[str, Any],
    *,
    name: str,
    started: float,
    engine: str,
    seed: int,
    progress: Progress,
    macs_length: int | None = None,
) -> tuple[Network, list[dict[str, Any]]]:
    """Write a narrowed network, open it again and measure it beside the original.

    Parameters
    ----------
    described : mapping
        What was done, for the record.
    name : str
        Of the opened network.
    started : float
        On the monotonic clock.
    macs_length : int, optional
        See `isthmus.flow.verifying.compare_networks`.

    Returns
    -------
    tuple
        The network as opened again, and the rows of `compare_networks`.
    """
    made = {
        "created": records.now(),
        "network": original.name,
        "fingerprint": fingerprint(original),
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        **described,
        "seed": seed,
        "versions": records.versions(),
        "machine": records.machine(),
    }
    save_artifact(small, out, made)
    opened = replace(open_network(out), name=name)
    rows = compare_networks(
        [original, opened], task, engine=engine, seed=seed, macs_length=macs_length, progress=progress
    )
    measured = {"measurements": {"original": rows[0], "narrowed": rows[1]}, "seconds": clock.monotonic() - started}
    update_record(out, measured)
    return opened, rows
