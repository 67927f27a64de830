"""Suiting: whether a network reads what a task holds, and what is done to it so that it does."""

from __future__ import annotations

from collections.abc import Sequence

from isthmus.errors import BadInput
from isthmus.examples import Example, Image, texts_of
from isthmus.network import Network, tokenize
from isthmus.tasks import Task


def check_suits(network: Network, task: Task) -> tuple[str, ...]:
    """Return notes on what is done to a task's data so that the network can read it.

    Raises
    ------
    BadInput
        If one is of texts and the other of images, or one is a language model and the other not of one.
    """
    if network.continues != (task.kind == "lm"):
        what, give = ("a language model", "lm:PATH") if network.continues else ("no language model", "text:PATH")
        raise BadInput(f"network {network.name}: {what}, and {task.name} is of another sort; give {give}")
    wanted = network.images
    if wanted is None:
        if task.kind == "images":
            raise BadInput(
                f"network {network.name}: reads texts, and {task.name} holds images; give a network of images"
            )
        return ()
    if task.kind != "images":
        raise BadInput(f"network {network.name}: reads images, and {task.name} holds texts; give images:PATH")
    images = [one for one in (*task.train, *task.held_out.examples) if isinstance(one, Image)]
    grey = sum(image.shape[2] < 3 for image in images)
    notes = list(task.notes)
    if wanted.channels == 3 and grey:
        notes.append(f"{grey:,} of {len(images):,} images are grey: they are given to the network as colour")
    if wanted.channels == 1 and grey < len(images):
        notes.append(f"{len(images) - grey:,} of {len(images):,} images are in colour: they are given as grey")
    sizes = {image.shape[:2] for image in images}
    if len(sizes) == 1 and (wanted.height, wanted.width) not in sizes:
        ((height, width),) = sizes
        notes.append(
            f"images of {height} by {width} pixels: each is resized to the network's {wanted.height} by {wanted.width}"
        )
    return tuple(notes)


def mean_tokens(network: Network, examples: Sequence[Example]) -> int:
    """Return how many tokens texts have in the mean, at least 1; 1 of images."""
    if network.images is not None:
        return 1
    tokens = int(tokenize(network, texts_of(examples, network.name))["attention_mask"].sum())
    return max(round(tokens / len(examples)), 1)
