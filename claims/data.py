"""The data of the claims: one task for every point, found and not assumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from isthmus.tasks import Task, load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.passages import clean_passages
from isthmus.tasks.tables import read_table
from isthmus.tasks.task import fingerprint


def why_not(*parts: str) -> str | None:
    """Return why an experiment cannot run on this machine, or None if all of its data is there."""
    folder = data_folder()
    if folder is None:
        return "no folder of data: set ISTHMUS_DATA, or put it beside the checkout in ../shared/data"
    missing = [part for part in parts if not (folder / part).exists()]
    return f"the folder of data (ISTHMUS_DATA) has no {', '.join(missing)}" if missing else None


def encoder_texts(folder: Path) -> list[str]:
    """Return unlabelled text for calibration and recovery beside the task's own: the sentences of SST-2."""
    sst2 = folder / "sst2" / "train.tsv"
    sentences = [str(text) for text in read_table(sst2).columns[0]] if sst2.exists() else []
    return clean_passages(sentences, "texts")


def encoder_task(folder: Path) -> Task:
    """Return the task of the encoder claims: STS-B, scored on its dev set, trained on unlabelled text only.

    Texts are the training sentences of STS-B and those of SST-2, less what is held out. The scores of the training
    pairs are left out, so that no recovery can use them.
    """
    stsb = load_task(f"sts:{folder / 'stsb'}")
    held = set(stsb.held_out.passages)
    train = tuple(dict.fromkeys((*stsb.train, *(text for text in encoder_texts(folder) if text not in held))))
    digest = fingerprint(stsb.kind, train, stsb.held_out, (), (), ())
    return replace(stsb, name="sts:stsb with SST-2", train=train, pairs=(), fingerprint=digest)
