"""The data of the claims: one task for every point, found and not assumed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.tasks import Task, load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.passages import clean_passages
from isthmus.tasks.splitting import task_of
from isthmus.tasks.tables import read_table
from isthmus.tasks.task import HeldOut, fingerprint
from isthmus.zoo.vit_fashion import divided

VALIDATION_PAIRS = 1000
CIFAR, FASHION = "cifar10/train-20k.npz", "fashion-mnist"
HELD_IMAGES, VALIDATION_IMAGES = 5000, 2500


def why_not(*parts: str) -> str | None:
    """Return why an experiment cannot run on this machine, or None if all of its data is there."""
    folder = data_folder()
    if folder is None:
        return "no folder of data: set ISTHMUS_DATA, or put it beside the checkout in ../shared/data"
    missing = [part for part in parts if not (folder / part).exists()]
    return f"the folder of data (ISTHMUS_DATA) has no {', '.join(missing)}" if missing else None


def digest_of(arrays: Sequence[npt.NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) of arrays, their shapes and kinds included."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def encoder_texts(folder: Path) -> list[str]:
    """Return unlabelled text for calibration and recovery beside the task's own: the sentences of SST-2."""
    sst2 = folder / "sst2" / "train.tsv"
    sentences = [str(text) for text in read_table(sst2).columns[0]] if sst2.exists() else []
    return clean_passages(sentences, "texts")


def encoder_task(folder: Path, *, validation: bool = False) -> Task:
    """Return the task of the encoder claims: STS-B, scored on its dev set, trained on unlabelled text only.

    Texts are the training sentences of STS-B and those of SST-2, less what is held out. The scores of the training
    pairs are left out, so that no recovery can use them.

    Parameters
    ----------
    validation : bool
        Score on 1,000 pairs of STS-B train instead, which are then held out: what is chosen is chosen on these.
    """
    stsb = load_task(f"sts:{folder / 'stsb'}")
    held_out = stsb.held_out
    if validation:
        dev = set(held_out.passages)  # some sentences of train come again in dev
        unseen = [pair for pair in stsb.pairs if pair[0] not in dev and pair[1] not in dev]
        pairs = random.Random(7).sample(unseen, VALIDATION_PAIRS)
        left, right, scores = (tuple(column) for column in zip(*pairs, strict=True))
        held_out = HeldOut(left=left, right=right, scores=scores)
    held = {*stsb.held_out.passages, *held_out.passages}
    own = [text for text in stsb.train if text not in held] if validation else stsb.train
    train = tuple(dict.fromkeys((*own, *(text for text in encoder_texts(folder) if text not in held))))
    name = "sts:stsb with SST-2" + (", validation" if validation else "")
    digest = fingerprint(stsb.kind, train, held_out, (), (), ())
    return replace(stsb, name=name, train=train, held_out=held_out, pairs=(), fingerprint=digest)


def image_task(folder: Path, which: str, *, validation: bool = False) -> Task:
    """Return the task of a benchmark on images: all that is there in two parts, to tune on and to be judged by.

    Parameters
    ----------
    which : str
        `CIFAR`, of which 5,000 images are held out by a seed, or `FASHION`, of which those are that the zoo's ViT was
        not trained on.
    validation : bool
        Hold out 2,500 of the images to tune on instead, and leave out what is held out else: what is chosen is chosen
        on these.
    """
    task = load_task(f"images:{folder / which}")
    if which == FASHION:
        tuned, held = divided(task)
    else:
        rows = [*task.labelled, *zip(task.held_out.examples, task.held_out.labels, strict=True)]
        order = np.random.default_rng(7).permutation(len(rows))
        held, tuned = ([rows[index] for index in part] for part in (order[:HELD_IMAGES], order[HELD_IMAGES:]))
    if validation:
        order = np.random.default_rng(7).permutation(len(tuned))
        own = [[tuned[index] for index in part] for part in (order[:VALIDATION_IMAGES], order[VALIDATION_IMAGES:])]
        held, tuned = own
    examples, labels = zip(*held, strict=True)
    name = f"{task.name}{', validation' if validation else ''}"
    return task_of(
        task.kind,
        name,
        [image for image, _ in tuned],
        HeldOut(examples=examples, labels=labels),
        task.metric_name,
        labelled=tuple(tuned),
        label_names=task.label_names,
        notes=task.notes,
    )
