"""Trains the zoo's vision transformer on Fashion-MNIST (``python -m isthmus.zoo.vit_fashion``).

A ViT (Dosovitskiy et al. 2021) of transformers for grey images of 28 by 28 pixels: patches of 4 by 4 make 49 tokens,
with the class token 50. It is trained on the train images alone, less a part split off by seed on which it is
validated; that part holds all images that ``images:FOLDER`` holds out at seed 0. A run that was stopped, in whatever
way, goes on where it was, and ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isthmus.errors import BadInput, IsthmusError
from isthmus.examples import Example
from isthmus.network import ImageInput, Network, low_precision
from isthmus.pixels import moved, pixel_values, random_moves
from isthmus.storage.packing import pack, unpack
from isthmus.storage.processors import write_processor
from isthmus.storage.stages import StageStore
from isthmus.tasks import Task, load_task
from isthmus.tasks.data import data_folder
from isthmus.zoo.catalogue import WEIGHTS

NAME = "vit-fashion"
WANTED = ImageInput(1, 28, 28, (0.286,), (0.353,))
"""Mean and standard deviation of the train images."""
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
VALIDATION = 5000
SAVE_SECONDS = 60.0

Row = tuple[Example, int]


@dataclass(frozen=True)
class Training:
    """How the network is trained: shifts and mirrors, the rate rising over the warm-up and falling as a cosine.

    Matrices of the layers are trained by Muon (Jordan et al. 2024, its steps of the size that AdamW's have: Liu et al.
    2025, arXiv 2502.16982), which needs about half as many passes; all else by AdamW. At the end images are passed as
    they are, neither shifted nor mirrored, labels as they are, from weights in half precision and a rate that falls to
    zero.

    Parameters
    ----------
    epochs, last : float
        Passes over the train images, and passes at the end.
    batch : int
    learning_rate, last_rate, weight_decay : float
    warmup : float
        Share of the steps in which the rate rises.
    smoothing : float
        Of the labels.
    width, layers, heads, neurons : int
        The network's shape.
    seed : int
    """

    epochs: float = 8.0
    last: float = 1.0
    batch: int = 128
    learning_rate: float = 1.5e-3
    last_rate: float = 3e-4
    weight_decay: float = 0.05
    warmup: float = 0.05
    smoothing: float = 0.1
    width: int = 128
    layers: int = 6
    heads: int = 4
    neurons: int = 512
    seed: int = 0

    def rate_at(self, step: int, steps: int, end: int = 0) -> float:
        """Return the learning rate of a step of so many, behind which as many as ``end`` says come at the end."""
        if step >= steps:
            return self.last_rate * (1 - (step - steps) / max(1, end))
        rise = max(1.0, self.warmup * steps)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))


@dataclass(frozen=True)
class Images:
    """Pixels (images, 28, 28) and labels (images,), to train on and to validate with."""

    train: np.ndarray[Any, Any]
    train_labels: Tensor
    held: np.ndarray[Any, Any]
    held_labels: Tensor


def divided(task: Task, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Return the images to train on and those of the validation part, each with its label.

    What the task holds out is a part of the validation part.
    """
    rows = list(task.labelled)
    order = np.random.default_rng(seed).permutation(len(rows))
    more = max(0, min(VALIDATION - len(task.held_out.examples), len(rows) // 2))
    chosen = set(order[:more].tolist())
    held = [*zip(task.held_out.examples, task.held_out.labels, strict=True), *(rows[index] for index in sorted(chosen))]
    return [row for index, row in enumerate(rows) if index not in chosen], held


def read_images(folder: Path, seed: int = 0) -> Images:
    """Read the train images of Fashion-MNIST from their folder of IDX files, and split the validation part off.

    Raises
    ------
    BadInput
        If they are not there.
    """
    kept, held = divided(load_task(f"images:{folder}"), seed)
    arrays = [np.stack([np.asarray(image) for image, _ in part]) for part in (kept, held)]
    if arrays[0].shape[1:] != (WANTED.height, WANTED.width):
        raise BadInput(f"{folder}: images of shape {arrays[0].shape[1:]}; give the folder of Fashion-MNIST")
    labels = [torch.tensor([label for _, label in part]) for part in (kept, held)]
    return Images(arrays[0], labels[0], arrays[1], labels[1])


def build(training: Training) -> Any:
    """Return the network, its weights drawn from the seed."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(training.seed)
    config = ViTConfig(
        hidden_size=training.width,
        num_hidden_layers=training.layers,
        num_attention_heads=training.heads,
        intermediate_size=training.neurons,
        image_size=WANTED.height,
        patch_size=4,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    return ViTForImageClassification(config)


def train(
    model: Any,
    images: Images,
    training: Training,
    stages: StageStore,
    *,
    most: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> float:
    """Train a network in place, from where the stages left off; return its accuracy on the validation part.

    Parameters
    ----------
    most : int, optional
        Stop after so many steps of this run, for a trial; what was reached is kept in the stages.

    Raises
    ------
    IsthmusError
        If the loss is no longer finite.
    """
    each = max(1, len(images.train) // training.batch)
    whole = max(1, round(training.epochs * each))
    steps = whole + round(training.last * each)
    optimizers = _optimizers(model, training)
    step = _resumed(stages, model, optimizers)
    first, started = step, time.monotonic()
    saved = started
    model.train()
    while step < steps and (most is None or step - first < most):
        if step == whole:
            model.half().float()
            optimizers = _optimizers(model, training)
        loss = _step(model, optimizers, images, training, step, whole, steps - whole)
        if not math.isfinite(loss):
            raise IsthmusError(f"{NAME}: the loss is no longer finite at step {step}; give a lower learning rate")
        step += 1
        now = time.monotonic()
        if now - saved >= SAVE_SECONDS or step == steps:
            stages.save("training", *pack(_state(model, optimizers, step)))
            saved = now
        if step % 50 == 0 or step == steps or step % each == 0:
            left = (now - started) / (step - first) * (steps - step)
            note = f", validation {accuracy(model, images):.1%}" if step % each == 0 or step == steps else ""
            say(f"step {step:,} of {steps:,}, loss {loss:.3f}{note}, about {left / 60:.0f} min left")
    if most is not None:
        stages.save("training", *pack(_state(model, optimizers, step)))
    return accuracy(model, images)


def _optimizers(model: Any, training: Training) -> tuple[torch.optim.Optimizer, ...]:
    """Decay matrices only: norms, biases, the class token and the positions are left free."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    inner = [parameter for name, parameter in named if parameter.dim() == 2 and ".layers." in name]
    outer = [parameter for name, parameter in named if parameter.dim() in (2, 4) and ".layers." not in name]
    others = [parameter for name, parameter in named if parameter.dim() not in (2, 4)]
    groups = [{"params": outer, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return (
        torch.optim.Muon(
            inner, lr=training.learning_rate, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98), fused=True),
    )


def _state(model: Any, optimizers: Sequence[Any], step: int) -> dict[str, Any]:
    states = {str(place): optimizer.state_dict() for place, optimizer in enumerate(optimizers)}
    return {"model": dict(model.state_dict()), "optimizers": states, "step": step}


def _resumed(stages: StageStore, model: Any, optimizers: Sequence[Any]) -> int:
    if not stages.done("training"):
        return 0
    found = unpack(*stages.load("training"))
    model.load_state_dict(found["model"])
    for place, optimizer in enumerate(optimizers):
        optimizer.load_state_dict(found["optimizers"][str(place)])
    return int(found["step"])


def _step(
    model: Any, optimizers: Sequence[Any], images: Images, training: Training, step: int, steps: int, end: int
) -> float:
    """Take an optimizer step; which images, and how they are moved, follows from the seed and the step alone."""
    each = max(1, len(images.train) // training.batch)
    epoch, place = divmod(step, each)
    order = np.random.default_rng((training.seed, epoch)).permutation(len(images.train))
    chosen = order[place * training.batch : (place + 1) * training.batch]
    pixels = pixel_values(WANTED, images.train[chosen])
    if step < steps:
        pixels = moved(pixels, random_moves(WANTED, len(chosen), (training.seed, step, 1)), WANTED)
    with low_precision():
        logits = model(pixel_values=pixels).logits
    loss = F.cross_entropy(
        logits.float(), images.train_labels[chosen], label_smoothing=training.smoothing * (step < steps)
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step, steps, end)
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


def accuracy(model: Any, images: Images) -> float:
    """Return the share of the validation part that a network gets right, in float32."""
    training = model.training
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images.held), 250):
            part = slice(start, start + 250)
            found = model(pixel_values=pixel_values(WANTED, images.held[part])).logits.argmax(1)
            right += int((found == images.held_labels[part]).sum())
    model.train(training)
    return right / len(images.held)


def write(model: Any, folder: Path, record: dict[str, Any]) -> int:
    """Write the network in half precision with its config and record, as a whole; return the bytes of its weights."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.eval().half().save_pretrained(partial)
        write_processor(Network(NAME, model, None, "logits", False, 1, images=WANTED), partial)
        (partial / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return (folder / "model.safetensors").stat().st_size


def main(arguments: Sequence[str] | None = None) -> int:
    """Train from the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m isthmus.zoo.vit_fashion", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, help="the folder of Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=WEIGHTS / NAME, help="where the network goes")
    parser.add_argument("--epochs", type=float, default=Training.epochs, help="passes over the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="a trial: so many steps, and nothing is written but how far it is")
    given = parser.parse_args(arguments)
    try:
        real = data_folder()
        folder = given.data or (real / "fashion-mnist" if real is not None else None)
        if folder is None:
            raise BadInput(f"{NAME}: no data; give --data FOLDER or set ISTHMUS_DATA")
        training = Training(epochs=given.epochs, seed=given.seed)
        images = read_images(folder, training.seed)
        place = given.out.absolute()
        stages = StageStore(place.with_name(f".{place.name}.stages"), asdict(training), resume=True)
        model = build(training)
        reached = train(model, images, training, stages, most=given.steps, say=_say)
        _say(f"validation {reached:.2%} of {len(images.held):,} images")
        if given.steps is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            record = {"training": asdict(training), "validation": reached, "images": len(images.held)}
            size = write(model, place, record)
            stages.clear()
            _say(f"{place}: {size / 1e6:.2f} MB")
    except IsthmusError as error:
        _say(str(error))
        return 2 if isinstance(error, BadInput) else 1
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
