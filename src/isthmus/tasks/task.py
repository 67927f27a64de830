"""What a network is for, as data: the examples to learn from, what is held out, and a measured quality."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from isthmus.errors import BadInput
from isthmus.examples import Example

TaskKind = Literal["text", "sts", "classify", "images", "lm"]

KINDS: tuple[TaskKind, ...] = ("text", "sts", "classify", "images", "lm")
LIKENESS, SPEARMAN, ACCURACY, LIKELIHOOD = "likeness", "spearman", "accuracy", "likelihood"


@dataclass(frozen=True)
class HeldOut:
    """What a metric is computed on; nothing of it may be trained on.

    Parameters
    ----------
    examples : tuple of str or of Image
        The passages of a ``text`` task, the pieces of an ``lm`` task, the examples of a ``classify`` task, or the
        images of an ``images`` task.
    labels : tuple of int
        Of a ``classify`` task, or of labelled images: one an example, an index into ``Task.label_names``.
    left, right : tuple of str
        Of an ``sts`` task: the two sides of each pair.
    scores : tuple of float
        Of an ``sts`` task: how alike each pair is, 0 to 1.
    """

    examples: tuple[Example, ...] = ()
    labels: tuple[int, ...] = ()
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def passages(self) -> tuple[Example, ...]:
        """Every distinct text or image that is held out, in order."""
        return tuple(dict.fromkeys((*self.examples, *self.left, *self.right)))


@dataclass(frozen=True)
class Metric:
    """A measured quality.

    Parameters
    ----------
    name : str
        ``likeness``, ``spearman``, ``accuracy`` or ``likelihood``; for all of them more is better and 1 is the most.
    value : float
    ci95 : tuple of float
        The 95 % bootstrap interval, low and high.
    """

    name: str
    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Parameters
    ----------
    kind : {"text", "sts", "classify", "images", "lm"}
    name : str
        For display, such as ``sts:stsb``.
    train : tuple of str or of Image
        Distinct texts or images, without labels, for calibration and recovery. None of them is held out.
    held_out : HeldOut
    metric_name : {"likeness", "spearman", "accuracy", "likelihood"}
    fingerprint : str
        SHA-256 (hex) of all the data in the task, including how it is split.
    pairs : tuple of (str, str, float)
        Of an ``sts`` task: the pairs to train on, scores 0 to 1.
    labelled : tuple of (str or Image, int)
        Where there are classes: the examples to train on, labels as indices into ``label_names``.
    label_names : tuple of str
        The classes, numbers by size, others by alphabet.
    notes : tuple of str
        What was done to the data that a reader should know.
    """

    kind: TaskKind
    name: str
    train: tuple[Example, ...]
    held_out: HeldOut
    metric_name: str
    fingerprint: str
    pairs: tuple[tuple[str, str, float], ...] = ()
    labelled: tuple[tuple[Example, int], ...] = ()
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def require_train(self) -> tuple[Example, ...]:
        """Return the examples to train on.

        Raises
        ------
        BadInput
            If all of the data is held out.
        """
        if not self.train:
            raise BadInput(
                f"{self.name}: all of it is held out, so there is nothing to calibrate or train on; "
                "give a folder with train and dev files"
            )
        return self.train


def fingerprint(
    kind: TaskKind,
    train: tuple[Example, ...],
    held_out: HeldOut,
    pairs: tuple[tuple[str, str, float], ...],
    labelled: tuple[tuple[Example, int], ...],
    label_names: tuple[str, ...],
) -> str:
    """Return the SHA-256 (hex) of a task's data; JSON keeps the boundaries between texts unambiguous."""
    held = [held_out.examples, held_out.labels, held_out.left, held_out.right, held_out.scores]
    digest = hashlib.sha256()
    for part in (kind, train, held, pairs, labelled, label_names):
        digest.update(json.dumps(part, default=lambda image: image.digest.hex()).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
