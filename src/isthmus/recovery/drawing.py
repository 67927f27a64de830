"""Drawing: batches of whatever a network reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from isthmus.examples import Example, texts_of
from isthmus.network import Network
from isthmus.recovery.batches import Batch, Labelled, LabelledBatches, TextBatches
from isthmus.recovery.image_batches import ImageBatches, LabelledImages


class Batches(Protocol):
    """Micro-batches of examples, the same for the same seed and step."""

    @property
    def size(self) -> int:
        """Examples in one optimizer step."""

    @property
    def count(self) -> int:
        """How many examples there are."""

    @property
    def fixed(self) -> bool:
        """Whether an example is the same at every step."""

    def __len__(self) -> int:
        """Return how many steps go once over all examples."""

    def step(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of optimizer step ``step``."""

    def once(self) -> Iterator[Batch]:
        """Yield this process's micro-batches of one pass over all examples, as they are."""


class LabelledSteps(Protocol):
    """Micro-batches of labelled examples, one a step."""

    def step(self, step: int) -> Labelled:
        """Return this process's micro-batch of optimizer step ``step``."""


def draw(
    examples: Sequence[Example],
    student: Network,
    teacher: Network,
    *,
    size: int = 64,
    seed: int = 0,
    length: int = 128,
    augment: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Return batches of texts or of images, whichever the student reads.

    Parameters
    ----------
    length : int
        Texts are cut to this many tokens.
    augment : bool
        Whether images are shifted and mirrored at random at every step. Texts never are.
    """
    shares: dict[str, Any] = {"size": size, "seed": seed, "rank": rank, "world": world}
    if student.images is None:
        return TextBatches(examples, student, teacher, length=length, **shares)
    return ImageBatches(examples, student, teacher, augment=augment, **shares)


def draw_labelled(
    examples: Sequence[Example],
    targets: Sequence[int],
    student: Network,
    *,
    size: int,
    seed: int = 0,
    length: int = 128,
    rank: int = 0,
    world: int = 1,
) -> LabelledSteps:
    """Return batches of texts or of images with their classes."""
    shares: dict[str, Any] = {"size": size, "seed": seed, "rank": rank, "world": world}
    if student.images is not None:
        return LabelledImages(examples, targets, student, **shares)
    texts = [(text,) for text in texts_of(examples, "recovery")]
    return LabelledBatches(texts, targets, student, length=length, **shares)
