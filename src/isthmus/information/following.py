"""Recording the information plane of a training script."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput
from isthmus.information.plane import InformationPlane

NEEDED = ("model", "inputs", "labels", "train")


def follow(script: str | Path, paths: Sequence[str], *, every: int = 1, **options: Any) -> InformationPlane:
    """Run a training script and return the plane of the network that it trains.

    The script defines ``model``, ``inputs`` and ``labels`` (the samples to record on) and ``train(callback)``, which
    trains the model and calls ``callback(step)`` after each step. Its ``__name__`` is ``"isthmus.followed"``, so what
    stands under ``if __name__ == "__main__"`` does not run. The network is recorded as step 0 before the training.

    Parameters
    ----------
    script : path
    paths : sequence of str
        Of the model's modules.
    every : int
        Of how many steps one is recorded.
    **options
        Of `InformationPlane`.

    Raises
    ------
    BadInput
        If the script is missing or lacks one of the names, or as `InformationPlane` does.
    """
    if not Path(script).is_file():
        raise BadInput(f"script {script}: no such file; give a Python file")
    names = runpy.run_path(str(script), run_name="isthmus.followed")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise BadInput(f"script {script}: defines no {', '.join(missing)}; it must define {', '.join(NEEDED)}")
    plane = InformationPlane(names["model"], paths, names["inputs"], names["labels"], every=every, **options)
    plane.record(0)
    names["train"](plane)
    return plane
