"""The task that is made of images: their parts, their classes, and what a reader should know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from isthmus.errors import BadInput
from isthmus.examples import Example, Image
from isthmus.tasks.image_arrays import Part, numbered
from isthmus.tasks.splitting import sorted_names, split, task_of
from isthmus.tasks.task import ACCURACY, LIKENESS, HeldOut, Task

LEAST_LIKENESS, LEAST_ACCURACY = 3, 1
"""A correlation over fewer pairs of images is undefined."""


def images_task(name: str, where: str, train: Part | None, held_out: Part | None, seed: int) -> Task:
    """Return the task of images to train on and images held out; where no part is given, one is split off.

    Raises
    ------
    BadInput
        If there are too few images, of a class or in all, or only one part is labelled.
    """
    parts = [part for part in (train, held_out) if part is not None]
    if not parts or not any(part.images for part in parts):
        raise BadInput(f"{where}: no images; give some")
    bare = [part for part in parts if part.labels is None]
    if bare and len(bare) < len(parts):
        raise BadInput(f"{bare[0].where}: has no labels, where the other part has; label both or none")
    notes = _notes([image for part in parts for image in part.images])
    if bare:
        return _unlabelled(name, where, train, held_out, seed, notes)
    if train is not None:
        _check_classes(train)
    names = _class_names(parts, where)
    index = {label: number for number, label in enumerate(names)}
    rows = [_rows(part, index) for part in (train, held_out)]
    kept, held = _divided(rows[0], rows[1] if held_out is not None else None, where, seed, LEAST_ACCURACY)
    seen = {image for image, _ in held}
    labelled = tuple((image, label) for image, label in kept if image not in seen)
    examples = HeldOut(examples=tuple(image for image, _ in held), labels=tuple(label for _, label in held))
    images = [image for image, _ in labelled]
    return task_of("images", name, images, examples, ACCURACY, labelled=labelled, label_names=names, notes=notes)


def _unlabelled(
    name: str, where: str, train: Part | None, held_out: Part | None, seed: int, notes: tuple[str, ...]
) -> Task:
    both: list[list[tuple[Example, int]]]
    both = [[] if part is None else [(image, 0) for image in dict.fromkeys(part.images)] for part in (train, held_out)]
    kept, held = _divided(both[0], both[1] if held_out is not None else None, where, seed, LEAST_LIKENESS)
    examples = HeldOut(examples=tuple(image for image, _ in held))
    return task_of("images", name, [image for image, _ in kept], examples, LIKENESS, notes=notes)


def _rows(part: Part | None, index: dict[str, int]) -> list[tuple[Example, int]]:
    if part is None or part.labels is None:
        return []
    return [(image, index[label]) for image, label in zip(part.images, part.labels, strict=True)]


def _divided(
    train: Sequence[tuple[Example, int]],
    held_out: Sequence[tuple[Example, int]] | None,
    where: str,
    seed: int,
    least: int,
) -> tuple[list[tuple[Example, int]], list[tuple[Example, int]]]:
    if held_out is None:
        if len(train) < least + 1:
            few = f"{len(train)} image{' is' if len(train) == 1 else 's are'} too few"
            raise BadInput(f"{where}: {few}; give at least {least + 1}, better hundreds")
        return split(list(train), seed=seed, least=least)
    if len(held_out) < least:
        raise BadInput(f"{where}: {len(held_out)} held out, too few to measure on; give at least {least} images")
    return list(train), list(held_out)


def _check_classes(part: Part) -> None:
    counts = Counter(part.labels)
    if len(counts) < 2:
        raise BadInput(f"{part.where}: all images are of one class ({next(iter(counts))}); give images of two or more")
    single = next((label for label, count in counts.items() if count < 2), None)
    if single is not None:
        raise BadInput(f"{part.where}: class {single} has one image; give each class two or more, or take it away")


def _class_names(parts: Sequence[Part], where: str) -> tuple[str, ...]:
    """Return all classes: in the order that the data gives them, numbers by size, other names by alphabet."""
    seen = {label for part in parts for label in part.labels or ()}
    given = max((part.classes for part in parts if part.classes is not None), key=len, default=None)
    if given is not None and seen <= set(given):
        return given
    names = sorted_names(seen)
    if len({numbered([label]) is None for label in seen}) > 1:
        raise BadInput(f"{where}: some labels are numbers and others names ({', '.join(names[:4])}); use one kind")
    return names


def _notes(images: Sequence[Image]) -> tuple[str, ...]:
    """Return what differs among images that a network will get alike."""
    sizes = sorted({image.shape[:2] for image in images})
    kinds = {image.shape[2] >= 3 for image in images}
    notes = []
    if len(sizes) > 1:
        (low, *_), high = sizes, sizes[-1]
        many = f"{len(sizes)} sizes, from {low[0]} by {low[1]} to {high[0]} by {high[1]} pixels"
        notes.append(f"images of {many}: each is resized to what the network wants")
    if len(kinds) > 1:
        notes.append("some images are grey and others in colour: each is converted to what the network wants")
    return tuple(notes)
