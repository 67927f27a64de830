"""Splitting: what is held out of data that has no parts of its own, and the task that is made of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from isthmus.examples import Example
from isthmus.tasks.task import HeldOut, Task, TaskKind, fingerprint

HELD_OUT_SHARE = 0.1
HELD_OUT_RANGE = (20, 1000)

Row = TypeVar("Row")


def split(rows: list[Row], *, seed: int, least: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and those held out, each in its first order.

    A tenth is held out, at least 20 and at most 1000, never more than half, but not fewer than ``least``.
    """
    count = min(max(round(len(rows) * HELD_OUT_SHARE), HELD_OUT_RANGE[0]), HELD_OUT_RANGE[1], len(rows) // 2)
    chosen = set(np.random.default_rng(seed).permutation(len(rows))[: max(count, least)].tolist())
    kept = [row for index, row in enumerate(rows) if index not in chosen]
    return kept, [rows[index] for index in sorted(chosen)]


def sorted_names(labels: set[str]) -> tuple[str, ...]:
    """Sort numbers by size, so that labels 0 to 10 stand where a classifier's outputs stand; others by alphabet."""
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def task_of(
    kind: TaskKind,
    name: str,
    examples: Sequence[Example],
    held_out: HeldOut,
    metric_name: str,
    *,
    pairs: tuple[tuple[str, str, float], ...] = (),
    labelled: tuple[tuple[Example, int], ...] = (),
    label_names: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Task:
    """Return a task whose training examples are distinct and none of them held out."""
    seen = set(held_out.passages)
    train = tuple(example for example in dict.fromkeys(examples) if example not in seen)
    return Task(
        kind=kind,
        name=name,
        train=train,
        held_out=held_out,
        metric_name=metric_name,
        fingerprint=fingerprint(kind, train, held_out, pairs, labelled, label_names),
        pairs=pairs,
        labelled=labelled,
        label_names=label_names,
        notes=notes,
    )
