"""Batches of images, shifted and mirrored at random, in an order that only the seed decides."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import BadInput
from isthmus.examples import Example
from isthmus.network import ImageInput, Network, encode
from isthmus.pixels import moved, random_moves
from isthmus.recovery.batches import Batch, Labelled

MICRO_PIXELS = 1 << 17
"""Pixels of one micro-batch: bounds the memory that activations take. 128 images of 32 by 32, 8 at the least."""


class ImageBatches:
    """Endless micro-batches of images, the same for the same seed and step.

    Parameters
    ----------
    images : sequence of Image
    student, teacher : Network
        Both see the same pixels.
    size : int
        Images in one optimizer step, over all micro-batches and processes.
    seed : int
    augment : bool
        Whether images are shifted and mirrored at random at every step.
    rank, world : int
        Which of how many processes this is: each takes its share of the images of every step.

    Raises
    ------
    BadInput
        If the networks want images to be unlike, or there are fewer images than processes.
    """

    def __init__(
        self,
        images: Sequence[Example],
        student: Network,
        teacher: Network,
        *,
        size: int = 64,
        seed: int = 0,
        augment: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if student.images is None or student.images != teacher.images:
            raise BadInput(f"recovery: {student.name} and {teacher.name} want images to be unlike; narrow the original")
        self.size = min(size, len(images))
        if self.size < world:
            raise BadInput(f"recovery: {self.size} images in a step for {world} processes; give more images")
        self.images, self.network, self.wanted = images, student, student.images
        self.seed, self.augment, self.rank, self.world = seed, augment, rank, world
        self._epochs: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return max(1, len(self.images) // self.size)

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.images)

    @property
    def fixed(self) -> bool:
        """Whether an image is the same at every step."""
        return not self.augment

    def step(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of optimizer step ``step``; over all processes, weights average 1."""
        epoch, position = divmod(step, len(self))
        if self._epochs[0] != epoch:
            self._epochs = (epoch, _shuffled(len(self.images), f"{self.seed}:{epoch}"))
        chosen = self._epochs[1][position * self.size : (position + 1) * self.size]
        moves = random_moves(self.wanted, len(chosen), (self.seed, step)) if self.augment else None
        places = range(self.rank, len(chosen), self.world)
        parts = _parts(places, self.wanted)
        return [
            self._collate([chosen[place] for place in part], len(part) * self.world / len(chosen), moves, part)
            for part in parts
        ]

    def once(self) -> Iterator[Batch]:
        """Yield this process's micro-batches of one pass over all images, as they are."""
        for start in range(self.rank * self.size, len(self.images), self.size * self.world):
            chosen = range(start, min(start + self.size, len(self.images)))
            for part in _parts(chosen, self.wanted):
                yield self._collate(part, len(part) / len(chosen), None, part)

    def _collate(self, indices: Sequence[int], weight: float, moves: Tensor | None, places: Sequence[int]) -> Batch:
        inputs = encode(self.network, [self.images[index] for index in indices])
        if moves is not None:
            inputs = {name: moved(pixels, moves[list(places)], self.wanted) for name, pixels in inputs.items()}
        aligned = torch.ones(len(indices), dtype=torch.bool)
        return Batch(inputs, inputs, aligned, weight, torch.tensor(list(indices)))


class LabelledImages:
    """Endless micro-batches of labelled images, one a step, the same for the same seed and step.

    They are shifted but not mirrored: what is mirrored may be of another class (letters, digits).
    """

    def __init__(
        self,
        images: Sequence[Example],
        targets: Sequence[int],
        student: Network,
        *,
        size: int = 16,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert student.images is not None
        fit = 2 * world * MICRO_PIXELS // (student.images.height * student.images.width)
        self.size = min(max(min(size, fit), 2 * world), len(targets))
        if self.size < world:
            raise BadInput(f"recovery: {self.size} labelled images for {world} processes; give more or labels=0")
        self.images, self.targets, self.network, self.wanted = images, targets, student, student.images
        self.seed, self.rank, self.world = seed, rank, world
        self._epochs: tuple[int, list[int]] = (-1, [])

    def step(self, step: int) -> Labelled:
        """Return this process's micro-batch of optimizer step ``step``."""
        epoch, position = divmod(step, max(1, len(self.images) // self.size))
        if self._epochs[0] != epoch:
            self._epochs = (epoch, _shuffled(len(self.images), f"labels:{self.seed}:{epoch}"))
        chosen = self._epochs[1][position * self.size : (position + 1) * self.size]
        moves = random_moves(self.wanted, len(chosen), (self.seed, step, 1))
        moves[:, 2] = 0
        places = list(range(self.rank, len(chosen), self.world))
        pixels = encode(self.network, [self.images[chosen[place]] for place in places])
        inputs = {name: moved(values, moves[places], self.wanted) for name, values in pixels.items()}
        target = torch.tensor([self.targets[chosen[place]] for place in places])
        return Labelled(inputs, target, len(places) * self.world / len(chosen))


def _shuffled(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _parts(places: Sequence[int], wanted: ImageInput) -> list[Sequence[int]]:
    """Cut a step into micro-batches of about one size, none of fewer than 8 images where there are that many."""
    most = max(8, MICRO_PIXELS // (wanted.height * wanted.width))
    count = max(1, min(-(-len(places) // most), len(places) // 8))
    bounds = np.linspace(0, len(places), count + 1).round().astype(int)
    return [places[low:high] for low, high in pairwise(bounds.tolist())]
