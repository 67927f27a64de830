"""Watch: the information plane of a training run, from the checkpoints that it leaves in a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import nn

from isthmus.errors import BadInput, IsthmusError
from isthmus.examples import Example
from isthmus.flow.suiting import check_suits
from isthmus.information.plane import NOISE, InformationPlane
from isthmus.information.plane_points import PlanePoint
from isthmus.network import encode
from isthmus.progress import Progress, silent
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task

SAMPLES = 512
LAYERS = 4
"""Layers that are watched where none are named."""
_CONFIG = "config.json"


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the steps and folders of checkpoints, by step: the folders there whose names end in a number.

    Raises
    ------
    BadInput
        If there is no such folder, or two checkpoints are of one step.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give the one that the training writes its checkpoints into")
    numbered = [(re.search(r"(\d+)$", path.name), path) for path in folder.iterdir() if (path / _CONFIG).is_file()]
    found = sorted((int(match[1]), path) for match, path in numbered if match is not None)
    for (step, path), (other, twin) in pairwise(found):
        if step == other:
            raise BadInput(f"{folder}: {path.name} and {twin.name} are both of step {step}; give a folder for each run")
    return found


def check_labelled(task: Task) -> None:
    """Check that a task says what its held-out examples are: one side of the plane is the label.

    Raises
    ------
    BadInput
        If it does not.
    """
    if not task.held_out.labels:
        raise BadInput(
            f"{task.name}: its examples have no classes, and I(T; Y) needs them; give classify:PATH, or images:PATH "
            "with labels"
        )


def watch_folder(
    folder: Path,
    task: Task,
    *,
    paths: Sequence[str] = (),
    samples: int = SAMPLES,
    noise: float | None = NOISE,
    estimator: str = "noisy",
    label_estimator: str = "auto",
    seed: int = 0,
    wait: Callable[[], bool] | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[PlanePoint, ...]]:
    """Yield the points of each checkpoint in a folder, by step: all of the same held-out examples.

    Parameters
    ----------
    folder : Path
        With a folder for each checkpoint, as ``transformers.Trainer`` writes them.
    paths : sequence of str
        Of modules; by default `LAYERS` of the network's blocks, evenly from the first to the last.
    samples : int
        Held-out examples, drawn by seed.
    noise, estimator, label_estimator
        See `InformationPlane`.
    wait : callable, optional
        Called when every checkpoint has been read; looks for new ones as long as it returns True. A checkpoint that
        cannot be opened is then taken to be half written, and tried again.

    Raises
    ------
    BadInput
        If the task has no classes, there are no checkpoints or one cannot be opened, or as `InformationPlane` does.
    """
    check_labelled(task)
    if samples < 2:
        raise BadInput(f"samples {samples}: give 2 or more")
    examples, labels = _drawn(task, samples, seed)
    done: set[Path] = set()
    while True:
        found = checkpoints(folder)
        if not found and wait is None:
            raise BadInput(f"{folder}: no folder there ends in a number and holds a {_CONFIG}; look for checkpoint-500")
        for number, (step, path) in enumerate(found):
            if path in done:
                continue
            progress("watch", number, len(found), path.name)
            try:
                network = open_network(path)
            except IsthmusError:
                if wait is None:
                    raise
                continue
            check_suits(network, task)
            plane = InformationPlane(
                network.model, paths or blocks(network.model), encode(network, examples), labels,
                noise=noise, estimator=estimator, label_estimator=label_estimator, seed=seed,
            )  # fmt: skip
            done.add(path)
            yield plane.record(step)
        progress("watch", len(found), max(len(found), 1))
        if wait is None or not wait():
            return


def _drawn(task: Task, samples: int, seed: int) -> tuple[list[Example], np.ndarray]:
    held = task.held_out
    order = np.sort(np.random.default_rng(seed).permutation(len(held.examples))[:samples])
    return [held.examples[place] for place in order], np.asarray(held.labels)[order]


def blocks(model: nn.Module, most: int = LAYERS) -> list[str]:
    """Return the paths of a network's repeated blocks, evenly from the first to the last.

    The blocks are members of lists of modules (``nn.ModuleList`` or ``nn.Sequential``) that are made of modules
    themselves, lie in no other block, and of whose class there is another.

    Raises
    ------
    BadInput
        If there are none.
    """
    members: dict[str, type] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(name.startswith(f"{one}.") for one in members):
            inner = {f"{name}.{place}".lstrip("."): child for place, child in module.named_children()}
            members |= {path: type(child) for path, child in inner.items() if next(child.children(), None) is not None}
    kinds = Counter(members.values())
    found = [path for path, kind in members.items() if kinds[kind] > 1]
    if not found:
        raise BadInput("this network repeats no blocks; name modules of it with --at")
    places = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[place] for place in places]
