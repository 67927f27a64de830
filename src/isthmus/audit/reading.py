"""Reading: the examples that a task holds out, and what is known of them, for all the networks alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from isthmus.audit.checks import Array, Integers, check_count
from isthmus.errors import BadInput
from isthmus.examples import Example, Image, shown
from isthmus.tasks import Task

MOST = 5000  # examples that are audited
MOST_UNLABELLED = 2000  # where every example is a class
LEVELS = 6  # of a score: 0, 1, ... 5 fifths
_LOSSES = {"accuracy": "error", "spearman": "1 - Spearman", "likeness": "divergence, nats"}

Parts = tuple[tuple[Example, ...], ...]


@dataclass(frozen=True)
class Reading:
    """The examples of a task.

    Parameters
    ----------
    task : Task
    examples : tuple of tuples of str or of Image
        One tuple an example: a text, the two of a pair, or an image.
    labels : array (examples,) or None
        Classes, or levels of a score; None of what is not labelled.
    scores : array (examples,) or None
        Of pairs: 0 to 1.
    class_names : tuple of str
    warnings : tuple of str
    """

    task: Task
    examples: Parts
    labels: Integers | None
    scores: Array | None
    class_names: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def loss_name(self) -> str:
        """What the loss of this task is."""
        return _LOSSES[self.task.metric_name]

    @property
    def images(self) -> tuple[Image, ...]:
        """The examples where they are images, else none."""
        return tuple(one for (one, *_) in self.examples if isinstance(one, Image))


def level_of(scores: Array) -> Integers:
    """Return scores of 0 to 1 as the nearest of the levels 0 to 5."""
    return np.asarray(np.clip(np.floor(scores * (LEVELS - 1) + 0.5), 0, LEVELS - 1), dtype=np.int64)


def read_task(task: Task, *, seed: int = 0) -> Reading:
    """Return the examples that a task holds out, at most 5000 (2000 where nothing is labelled), drawn at random.

    Raises
    ------
    BadInput
        If there are too few.
    """
    if task.kind == "lm":
        raise BadInput(f"{task.name}: language models are not audited yet; compare shows perplexity and recall")
    held = task.held_out
    examples: Parts = (
        tuple(zip(held.left, held.right, strict=True)) if held.left else tuple((one,) for one in held.examples)
    )
    check_count(len(examples), task.name)
    most = MOST if held.scores or held.labels else MOST_UNLABELLED
    chosen = np.sort(np.random.default_rng(seed).permutation(len(examples))[:most])
    warnings: tuple[str, ...] = ()
    if len(chosen) < len(examples):
        warnings += (f"{len(chosen):,} of {len(examples):,} held-out examples were audited, drawn at random",)
    examples = tuple(examples[index] for index in chosen.tolist())
    repeated = len(examples) - len(set(examples))
    if repeated:
        warnings += (f"{repeated} examples are repeated; intervals count them as if they were new",)
    if held.scores:
        scores = np.array(held.scores)[chosen]
        names = tuple(f"{level} of {LEVELS - 1}" for level in range(LEVELS))
        return Reading(task, examples, level_of(scores), scores, names, warnings)
    if held.labels:
        return Reading(task, examples, np.array(held.labels)[chosen], None, task.label_names, warnings)
    names = tuple(shown(one) for (one, *_) in examples)
    return Reading(task, examples, None, None, names, warnings)


def passages(reading: Reading) -> tuple[Example, ...]:
    """Return the distinct texts or images of the examples, in order."""
    return tuple(dict.fromkeys(one for example in reading.examples for one in example))


def names_of(reading: Reading) -> dict[Example, str]:
    """Return what each text or image is called on a page: a text is its own name, and no two images share one."""
    seen: Counter[str] = Counter()
    names: dict[Example, str] = {}
    for one in passages(reading):
        name = shown(one)
        seen[name] += 1
        names[one] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names
