"""Batches: texts tokenized once, grouped by length, in an order that only the seed decides."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import BadInput
from isthmus.examples import Example, texts_of
from isthmus.network import Network

MULTIPLE = 8
"""Batches are padded to a multiple of this many tokens."""
MICRO_TOKENS = 1536
"""Padded tokens of one micro-batch: bounds the memory that activations take, whatever the texts' length."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch as the student and the teacher see it.

    ``student`` and ``teacher`` hold ``input_ids`` and ``attention_mask`` of shape ``(batch, tokens)``, each with its
    own count of tokens, or the same ``pixel_values``; ``aligned`` (``(batch,)``, bool) says for which examples both
    have the same tokens; ``index`` (``(batch,)``) says which examples they are. ``weight`` is the share of this
    micro-batch in its step.
    """

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    aligned: Tensor
    weight: float
    index: Tensor


class TextBatches:
    """Endless micro-batches of texts, the same for the same seed and step.

    Parameters
    ----------
    texts : sequence of str
    student, teacher : Network
        Their tokenizers may differ: a narrowed vocabulary splits removed words.
    size : int
        Texts in one optimizer step, over all micro-batches and processes.
    seed : int
    length : int
        Texts are cut to this many tokens.
    rank, world : int
        Which of how many processes this is: each takes its share of the texts of every step.

    Raises
    ------
    BadInput
        If a network has no tokenizer, or there are fewer texts than processes.
    """

    def __init__(
        self,
        texts: Sequence[Example],
        student: Network,
        teacher: Network,
        *,
        size: int = 64,
        seed: int = 0,
        length: int = 128,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        texts = texts_of(texts, "recovery")
        self.size = min(size, len(texts))
        if self.size < world:
            raise BadInput(f"recovery: {self.size} texts in a step for {world} processes; give more texts")
        self.seed, self.rank, self.world = seed, rank, world
        length = min(length, student.max_length, teacher.max_length)
        self.teacher_ids = _encode(teacher, texts, length)
        same = student.tokenizer is teacher.tokenizer
        self.student_ids = self.teacher_ids if same else _encode(student, texts, length)
        self.length = length
        self.padding = (_pad(student), _pad(teacher))
        pairs = zip(self.student_ids, self.teacher_ids, strict=True)
        # Removed words become several pieces, so equal counts mean equal tokens - unless both were cut.
        self.aligned = [
            same or (len(a) == len(b) and (len(a) < length or _tokens(student, a) == _tokens(teacher, b)))
            for a, b in pairs
        ]
        self._epochs: tuple[int, list[list[int]]] = (-1, [])

    def __len__(self) -> int:
        return max(1, len(self.student_ids) // self.size)

    @property
    def count(self) -> int:
        """How many texts there are."""
        return len(self.student_ids)

    @property
    def fixed(self) -> bool:
        """Whether a text is the same at every step."""
        return True

    def step(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of optimizer step ``step``; over all processes, weights average 1."""
        epoch, position = divmod(step, len(self))
        if self._epochs[0] != epoch:
            self._epochs = (epoch, self._order(epoch))
        chosen = self._epochs[1][position]
        share = chosen[self.rank :: self.world]
        return [self._collate(part, len(part) * self.world / len(chosen)) for part in self._split(share)]

    def once(self) -> Iterator[Batch]:
        """Yield this process's micro-batches of one pass over all texts, short ones first."""
        order = sorted(range(len(self.student_ids)), key=lambda index: (len(self.student_ids[index]), index))
        for start in range(self.rank * self.size, len(order), self.size * self.world):
            chosen = order[start : start + self.size]
            yield from (self._collate(part, len(part) / len(chosen)) for part in self._split(chosen))

    def _order(self, epoch: int) -> list[list[int]]:
        """Shuffle, sort by length within windows of steps (little padding), then shuffle the steps."""
        generator = random.Random(f"{self.seed}:{epoch}")
        order = list(range(len(self.student_ids)))
        generator.shuffle(order)
        window = self.size * 32
        steps: list[list[int]] = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda index: len(self.student_ids[index]))
            steps += [part[i : i + self.size] for i in range(0, len(part) - self.size + 1, self.size)]
        generator.shuffle(steps)
        return steps

    def _split(self, chosen: Sequence[int]) -> list[list[int]]:
        """Cut a step into micro-batches; a small rest shares evenly with the one before it."""
        parts: list[list[int]] = []
        part: list[int] = []
        longest = 0
        for index in chosen:
            tokens = padded(max(len(self.student_ids[index]), len(self.teacher_ids[index])), self.length)
            longest = max(longest, tokens)
            if len(part) >= 8 and (len(part) + 1) * longest > MICRO_TOKENS:
                parts.append(part)
                part, longest = [], tokens
            part.append(index)
        parts.append(part)
        if len(parts) > 1 and 2 * len(parts[-1]) < len(parts[-2]):
            last = parts[-2] + parts[-1]
            parts[-2:] = [last[: (len(last) + 1) // 2], last[(len(last) + 1) // 2 :]]
        return parts

    def _collate(self, part: list[int], weight: float) -> Batch:
        return Batch(
            stack([self.student_ids[index] for index in part], self.padding[0], self.length),
            stack([self.teacher_ids[index] for index in part], self.padding[1], self.length),
            torch.tensor([self.aligned[index] for index in part]),
            weight,
            torch.tensor(part),
        )


@dataclass(frozen=True)
class Labelled:
    """One micro-batch with the task's own targets.

    ``inputs`` are as in ``Batch``; for pairs all left texts come first, then all right ones. ``target`` holds scores
    of shape ``(batch / 2,)`` for pairs, else classes of shape ``(batch,)``.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    weight: float


class LabelledBatches:
    """Endless micro-batches of labelled examples, one a step, the same for the same seed and step.

    Parameters
    ----------
    texts : sequence of tuple of str
        One text, or both of a pair, for each example.
    targets : sequence of float or int
        Scores from 0 to 1, or classes.
    size : int
        Examples in a step, over all processes.
    """

    def __init__(
        self,
        texts: Sequence[tuple[str, ...]],
        targets: Sequence[float] | Sequence[int],
        student: Network,
        *,
        size: int = 16,
        seed: int = 0,
        length: int = 128,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        flat = _encode(student, [text for example in texts for text in example], min(length, student.max_length))
        sides = len(texts[0])
        # All examples of a step pass at once, for they are compared; long ones therefore come in smaller steps.
        fit = 2 * MICRO_TOKENS * world // (sides * max(len(row) for row in flat))
        self.size = min(max(min(size, fit), 2 * world), len(targets))
        if self.size < world:
            raise BadInput(f"recovery: {self.size} labelled examples for {world} processes; give more or labels=0")
        self.seed, self.rank, self.world = seed, rank, world
        self.ids = [flat[start : start + sides] for start in range(0, len(flat), sides)]
        self.targets = targets
        self.padding = _pad(student)
        self._epochs: tuple[int, list[int]] = (-1, [])

    def step(self, step: int) -> Labelled:
        """Return this process's micro-batch of optimizer step ``step``."""
        epoch, position = divmod(step, max(1, len(self.ids) // self.size))
        if self._epochs[0] != epoch:
            order = list(range(len(self.ids)))
            random.Random(f"labels:{self.seed}:{epoch}").shuffle(order)
            self._epochs = (epoch, order)
        chosen = self._epochs[1][position * self.size : (position + 1) * self.size]
        share = chosen[self.rank :: self.world]
        rows = [self.ids[index][side] for side in range(len(self.ids[0])) for index in share]
        target = torch.tensor([self.targets[index] for index in share])
        return Labelled(stack(rows, self.padding), target, len(share) * self.world / len(chosen))


def _encode(network: Network, texts: Sequence[str], length: int) -> list[list[int]]:
    if network.tokenizer is None:
        raise BadInput(f"network {network.name}: has no tokenizer; give one to isthmus.open(model, tokenizer=...)")
    encoded = network.tokenizer(list(texts), truncation=True, max_length=length, return_attention_mask=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _tokens(network: Network, ids: Iterable[int]) -> list[str]:
    tokens: list[str] = network.tokenizer.convert_ids_to_tokens(list(ids))
    return tokens


def _pad(network: Network) -> int:
    return int(network.tokenizer.pad_token_id or 0)


def padded(tokens: int, limit: int) -> int:
    """Return the length that ``tokens`` are padded to: the next multiple, if the network can take that many."""
    return max(tokens, min(-(-tokens // MULTIPLE) * MULTIPLE, limit))


def stack(rows: Sequence[Sequence[int]], padding: int, limit: int = 0) -> dict[str, Tensor]:
    """Pad rows of token ids to one length; both tensors have the shape ``(rows, longest)``."""
    longest = max(len(row) for row in rows)
    # Few distinct shapes: the CPU kernels are compiled, and their buffers kept, once for each.
    longest = padded(longest, limit)
    ids = torch.full((len(rows), longest), padding, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
