"""Peak memory of one inference, measured in a process of its own (``python -m isthmus.export.peak``)."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.cost.measure import high_water, peak_bytes
from isthmus.export.engines import find_engine, load_runner

if TYPE_CHECKING:
    import numpy as np


def measure_peak(
    engine: str, path: str | Path, batch: Mapping[str, np.ndarray[Any, Any]], threads: int | None = None
) -> int:
    """Return the peak memory (bytes) of a fresh process that loads an exported network and runs one batch.

    The memory that the process holds once Python, numpy and the engine are imported is taken off.
    """
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "batch.safetensors"
        save_file(dict(batch), file)
        return peak_bytes("isthmus.export.peak", [engine, str(path), str(file), str(threads or 0)])


def main(engine: str, path: str, batch_file: str, threads: str = "0") -> None:
    """Load an exported network, run one batch and print the memory held before and at most."""
    from safetensors.numpy import load_file

    for package in find_engine(engine).runtime:
        importlib.import_module(package)
    batch = load_file(batch_file)
    before = high_water()
    load_runner(engine, path, int(threads) or None)(batch)
    sys.stdout.write(json.dumps({"before": before, "peak": high_water()}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
