"""The teacher in recovery: its outputs, computed once where examples come more than once, and what is held out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isthmus.examples import Example
from isthmus.memory import EVERY, give_back
from isthmus.network import Network, low_precision
from isthmus.recovery.batches import Batch
from isthmus.recovery.drawing import Batches, draw
from isthmus.recovery.recipe import Recipe, uses_bf16
from isthmus.recovery.watch import Seen, Watched, see
from isthmus.tasks.divergence import divergence

if TYPE_CHECKING:
    from accelerate import Accelerator

    from isthmus.storage.stages import StageStore

HELD_OUT_SHARE, HELD_OUT_MOST, HELD_OUT_LEAST = 0.05, 256, 8
TARGET_BYTES = 256 * 2**20
"""Outputs of the teacher are remembered while they take no more than this."""


def split_examples(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Return examples to train on and those held out for the stop rule: none where they would be too few to tell."""
    distinct = list(dict.fromkeys(examples))
    count = min(HELD_OUT_MOST, int(len(distinct) * HELD_OUT_SHARE))
    if count < HELD_OUT_LEAST:
        return distinct, []
    held = set(random.Random(f"held out:{seed}").sample(range(len(distinct)), count))
    trained = [example for index, example in enumerate(distinct) if index not in held]
    return trained, [distinct[index] for index in sorted(held)]


@dataclass(frozen=True)
class Outputs:
    """What a teacher makes of examples, computed once for several recoveries.

    Parameters
    ----------
    rows : mapping of str or Image to int
        The row of each example.
    table : Tensor, shape ``(examples, width)``
        In half precision: far below the noise of bf16 arithmetic, and half the memory.
    """

    rows: Mapping[Example, int]
    table: Tensor

    def of(self, examples: Sequence[Example]) -> Tensor:
        """Return the rows of ``examples``, shape ``(examples, width)``."""
        return self.table[[self.rows[example] for example in examples]]


def teacher_outputs(teacher: Network, examples: Sequence[Example], recipe: Recipe) -> Outputs:
    """Return what ``recover`` needs of a teacher for these examples, if the recipe asks for its outputs only."""
    from accelerate import Accelerator

    distinct = list(dict.fromkeys(examples))
    batches = draw(distinct, teacher, teacher, size=recipe.batch, length=recipe.length)
    table = pooled_table(batches, teacher, uses_bf16(recipe.precision), Accelerator(cpu=True), "teacher")
    return Outputs({example: row for row, example in enumerate(distinct)}, table.half())


class Teacher:
    """The original network, which shows what the student should compute.

    Parameters
    ----------
    network : Network
    watched : Watched
        What is needed besides its outputs.
    bf16 : bool
        Whether to compute in bf16.
    accelerator : Accelerator
        Puts together what several processes computed.
    """

    def __init__(self, network: Network, watched: Watched, bf16: bool, accelerator: Accelerator) -> None:
        self.network, self.watched, self.bf16, self.accelerator = network, watched, bf16, accelerator
        self.targets: Tensor | None = None

    def see(self, batch: Batch) -> Seen:
        """Return what the teacher makes of a micro-batch."""
        if self.targets is not None:
            return Seen(self.targets[batch.index].float(), batch.teacher.get("attention_mask"))
        with torch.no_grad(), low_precision(self.bf16):
            return see(self.network, batch.teacher, self.watched)

    def remember(self, batches: Batches, steps: int, stages: StageStore | None, stage: str) -> None:
        """Compute the outputs for all examples beforehand, if that takes less than computing them step by step.

        Which of the two is done depends on the examples and steps only, for the outputs may differ in the last bits.
        """
        if steps * batches.size <= batches.count or not batches.fixed or self.network.continues:
            return  # a language model has as many outputs of a text as there are tokens: too many to remember
        # A process without a share of so few examples has nothing to look at, and nothing that could be too large.
        first = next(iter(batches.once()), None)
        width = 0 if first is None else self.see(first).pooled.shape[-1]
        if batches.count * width * 2 > TARGET_BYTES:
            return
        if stages is not None and stages.done(stage):
            self.targets = stages.load(stage)[0]["targets"]
            return
        # Half precision: far below the noise of bf16 arithmetic, and half the memory.
        self.targets = pooled_table(batches, self.network, self.bf16, self.accelerator, "teacher").half()
        if stages is not None and self.accelerator.is_main_process:
            stages.save(stage, {"targets": self.targets}, {})


def pooled_table(batches: Batches, network: Network, bf16: bool, accelerator: Accelerator, side: str) -> Tensor:
    """Return the outputs for all examples, shape ``(examples, width)``; each process computes its share.

    Parameters
    ----------
    side : {"student", "teacher"}
        Whose inputs the network reads.
    """
    parts: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(batches.once()):
        if number % EVERY == 0:
            give_back()
        with torch.no_grad(), low_precision(bf16):
            inputs = batch.student if side == "student" else batch.teacher
            parts.append((batch.index, see(network, inputs, Watched()).pooled.float()))
    width = torch.tensor(parts[0][1].shape[-1] if parts else 0)
    if accelerator.num_processes > 1:  # a process without a share does not know the width
        width = accelerator.gather(width.reshape(1)).max()
    table = torch.zeros(batches.count, int(width))
    for index, pooled in parts:
        table[index] = pooled
    if accelerator.num_processes > 1:
        table = accelerator.reduce(table, "sum")
    return table


class HeldOutExamples:
    """Examples for the stop rule, with what the teacher makes of them."""

    def __init__(self, batches: Batches, student: Network, teacher: Teacher) -> None:
        self.batches, self.student = batches, student
        self.bf16, self.accelerator = teacher.bf16, teacher.accelerator
        self.teacher = teacher
        self.targets = torch.zeros(0)
        if not student.continues:
            self.targets = pooled_table(batches, teacher.network, self.bf16, self.accelerator, "teacher")

    def divergence(self) -> float:
        """Return the student's divergence from the teacher over all held-out examples, in nats."""
        if self.student.continues:
            return self._of_tokens()
        table = pooled_table(self.batches, self.student, self.bf16, self.accelerator, "student")
        return float(divergence(table, self.targets, self.student.pooling))

    def _of_tokens(self) -> float:
        """Return the mean divergence of the next token, a token; the teacher is asked anew."""
        total = torch.zeros(2, dtype=torch.float64)
        for batch in self.batches.once():
            with torch.no_grad(), low_precision(self.bf16):
                ours = see(self.student, batch.student, Watched()).pooled
            nats = divergence(ours, self.teacher.see(batch).pooled, self.student.pooling)
            total += torch.tensor([float(nats) * len(ours), len(ours)], dtype=torch.float64)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, "sum")
        return float(total[0] / total[1])
