"""What a network is for, as data: the texts to learn from, what is held out, and a measured quality."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from isthmus.errors import BadInput

TaskKind = Literal["text", "sts", "classify"]

KINDS: tuple[TaskKind, ...] = ("text", "sts", "classify")
METRIC_NAMES: dict[TaskKind, str] = {"text": "likeness", "sts": "spearman", "classify": "accuracy"}


@dataclass(frozen=True)
class HeldOut:
    """What a metric is computed on; nothing of it may be trained on.

    Parameters
    ----------
    texts : tuple of str
        The passages of a ``text`` task or the examples of a ``classify`` task.
    labels : tuple of int
        Of a ``classify`` task: one a text, an index into ``Task.label_names``.
    left, right : tuple of str
        Of an ``sts`` task: the two sides of each pair.
    scores : tuple of float
        Of an ``sts`` task: how alike each pair is, 0 to 1.
    """

    texts: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def passages(self) -> tuple[str, ...]:
        """Every distinct text that is held out, in order."""
        return tuple(dict.fromkeys((*self.texts, *self.left, *self.right)))


@dataclass(frozen=True)
class Metric:
    """A measured quality.

    Parameters
    ----------
    name : str
        ``likeness``, ``spearman`` or ``accuracy``; for all three more is better and 1 is the most.
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
    kind : {"text", "sts", "classify"}
    name : str
        For display, such as ``sts:stsb``.
    train : tuple of str
        Distinct texts, without labels, for calibration and recovery. None of them is held out.
    held_out : HeldOut
    metric_name : str
    fingerprint : str
        SHA-256 (hex) of all the data in the task, including how it is split.
    pairs : tuple of (str, str, float)
        Of an ``sts`` task: the pairs to train on, scores 0 to 1.
    labelled : tuple of (str, int)
        Of a ``classify`` task: the examples to train on, labels as indices into ``label_names``.
    label_names : tuple of str
        Of a ``classify`` task: the classes, numbers by size, others by alphabet.
    """

    kind: TaskKind
    name: str
    train: tuple[str, ...]
    held_out: HeldOut
    metric_name: str
    fingerprint: str
    pairs: tuple[tuple[str, str, float], ...] = ()
    labelled: tuple[tuple[str, int], ...] = ()
    label_names: tuple[str, ...] = ()

    def require_train(self) -> tuple[str, ...]:
        """Return the texts to train on.

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
    train: tuple[str, ...],
    held_out: HeldOut,
    pairs: tuple[tuple[str, str, float], ...],
    labelled: tuple[tuple[str, int], ...],
    label_names: tuple[str, ...],
) -> str:
    """Return the SHA-256 (hex) of a task's data; JSON keeps the boundaries between texts unambiguous."""
    held = [held_out.texts, held_out.labels, held_out.left, held_out.right, held_out.scores]
    digest = hashlib.sha256()
    for part in (kind, train, held, pairs, labelled, label_names):
        digest.update(json.dumps(part).encode("ascii"))
        digest.update(b"\n")
    return digest.hexdigest()
