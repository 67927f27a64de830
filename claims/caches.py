"""The experiment that claims about key-value caches share: lm_docs reads on through a cache, at equal bytes.

A sequence of `LENGTH` tokens is read, all but the last `READ` of them as a prompt, the cache narrows, and the rest is
read `CHUNK` tokens at a time: what was allocated at the end is what a setting costs, and the perplexity is that of the
rest. Recall is asked for once the prompt, which holds what is asked for, is narrowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.bottlenecks.cache.cache import NarrowCache, allocated_bytes
from isthmus.bottlenecks.cache.measuring import in_bfloat16, read
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.storage.opening import open as open_network
from isthmus.tasks.recall import KINDS, Kind, Recall, answered, recall
from isthmus.zoo.lm_docs_text import FILES, default_files, encode, read_documents

NEEDS = FILES
NAME = "lm-docs"
LENGTH, READ, CHUNK = 1024, 64, 16
ROWS, BATCH = 16, 4
ASKED = 8
"""Texts of each kind of recall."""
ANSWERS = {"pairs": 2, "copies": 3, "needles": 3}
"""At most so many answers of a text are asked for."""
SINKS, RECENT, BLOCK = 4, 16, 32
CLOSE = 0.015

Settings = CacheSetting | Sequence[CacheSetting]


@dataclass(frozen=True)
class Bed:
    """What caches are tried on.

    Parameters
    ----------
    model : transformers causal model
        In bfloat16.
    rows, calibration : Tensor, shape ``(rows, LENGTH)``
        Of documents held out; of documents trained on, and of recall lines that end in questions, half each.
    asked : dict of str to list of Recall
    """

    model: Any
    rows: Tensor
    calibration: Tensor
    asked: dict[Kind, list[Recall]]

    @property
    def full_bytes(self) -> int:
        """What the full cache of a sequence takes, its last token not held."""
        return self.taken(self.full, self.calibration[:1])

    def full(self) -> Any:
        """Return an empty full cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def taken(self, fresh: Callable[[], Any], rows: Tensor) -> int:
        """Return the bytes allocated at the end of sequences, the most of any."""
        most = 0
        for row in rows:
            held = fresh()
            read(self.model, row[None], held, LENGTH - READ, CHUNK)
            most = max(most, sum(allocated_bytes(layer) for layer in held.layers))
        return most


@cache
def bed(seed: int = 0) -> Bed:
    """Return what caches are tried on; other seeds make other rows and questions."""
    network = open_network(NAME)
    documents = read_documents(default_files())
    random = np.random.default_rng((seed, 77))
    held, trained = (encode(network.tokenizer, part) for part in (documents.held_out, documents.train[:200]))
    asked = {kind: [_asked(network.tokenizer, kind, random, held) for _ in range(ASKED)] for kind in KINDS}
    model = in_bfloat16(network.model)
    lines = [_ending(network.tokenizer, kind, random, trained) for kind in ("pairs", "needles")]
    calibration = torch.cat([_rows(trained, len(lines), random), torch.stack(lines)])
    return Bed(model, _rows(held, ROWS, random), calibration, asked)


def _ending(tokenizer: Any, kind: Any, random: np.random.Generator, text: np.ndarray[Any, Any]) -> Tensor:
    """Return `LENGTH` tokens of a recall line that end among its questions."""
    made = recall(tokenizer, kind, LENGTH if kind == "needles" else 2 * LENGTH, random, text)
    first = made.answers[0][0]
    ids = np.concatenate([text[:LENGTH], made.ids[: first + READ - CHUNK]])[-LENGTH:]
    return torch.from_numpy(ids.astype(np.int64))


def _rows(text: np.ndarray[Any, Any], count: int, random: np.random.Generator) -> Tensor:
    starts = random.choice(len(text) // LENGTH, size=count, replace=False) * LENGTH
    return torch.from_numpy(np.stack([text[start : start + LENGTH] for start in starts]).astype(np.int64))


def _asked(tokenizer: Any, kind: Kind, random: np.random.Generator, text: np.ndarray[Any, Any]) -> Recall:
    """Return a text of which about `LENGTH` tokens come before the first answer, cut behind the last one asked for."""
    made = recall(tokenizer, kind, LENGTH if kind == "needles" else 2 * LENGTH, random, text)
    answers = made.answers[: ANSWERS[kind]]
    return replace(made, ids=made.ids[: answers[-1][1]], answers=answers)


def through(model: Any, settings: Settings) -> Callable[[], NarrowCache]:
    """Return what makes empty caches of these settings."""
    return lambda: NarrowCache(model, settings)


def measured(found: Bed, fresh: Callable[[], Any]) -> dict[str, float]:
    """Return ``bytes`` and their ``share`` of the full cache's, ``perplexity``, and ``recall`` in all and by kind."""
    nats = []
    for rows in torch.split(found.rows, BATCH):
        said = read(found.model, rows, fresh(), LENGTH - READ, CHUNK)
        nats.append(-said.gather(-1, rows[:, LENGTH - READ :, None]).mean().item())
    known: dict[str, float] = {
        str(kind): float(np.mean([answered(found.model, one, fresh()) for one in texts]))
        for kind, texts in found.asked.items()
    }
    taken = found.taken(fresh, found.rows[:2])
    return {
        "bytes": taken,
        "share": taken / found.full_bytes,
        "perplexity": math.exp(float(np.mean(nats))),
        "recall": float(np.mean(list(known.values()))),
        **known,
    }


def widest(found: Bed, make: Callable[[int], Settings | None], most: int, budget: float, least: int = 0) -> Any:
    """Return what ``make`` returns for a number up to ``most`` that just keeps a budget of bytes, None if none does.

    Bytes grow about evenly with the number, so that a few trials on a calibration text come within `CLOSE` of it.

    Parameters
    ----------
    make : callable
        From a number of entries (or whatever grows with the bytes) to settings.
    """

    def taken(number: int) -> tuple[Settings | None, float]:
        settings = make(number)
        size = 0.0 if settings is None else found.taken(through(found.model, settings), found.calibration[:1])
        return settings, size

    kept, size = taken(most)
    if kept is not None and size <= budget:
        return kept
    low, low_size, high, high_size = least, 0.0, most, size
    best = None
    while high - low > 1 and (best is None or low_size < (1 - CLOSE) * budget):
        share = (budget - low_size) / max(high_size - low_size, 1.0)
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        kept, size = taken(middle)
        if kept is None or size <= budget:
            best, low, low_size = kept or best, middle, size
        else:
            high, high_size = middle, size
    return best
