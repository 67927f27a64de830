"""Recall lines: what can only be answered by looking far back, made anew from a seed.

Three kinds, mixed with text: *pairs*, names with numbers and then the names again; *copies*, random words and then the
same words; *needles*, one sentence with a number within a document, asked for at its end. A cache that lost the entry
cannot answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from isthmus.errors import BadInput

Ids = npt.NDArray[np.int32]
Kind = Literal["pairs", "copies", "needles"]
KINDS: tuple[Kind, ...] = ("pairs", "copies", "needles")
SHORTEST = 128
"""Tokens of a text below which there is no looking far back."""
_FIRST = "amber birch cedar delta ember flint gable hazel ivory jumbo kettle linen maple noble olive pearl quartz river"
_SECOND = (
    "anchor basket candle dragon engine falcon garden hammer island jacket kernel ladder magnet needle orchid pillar"
)


@dataclass(frozen=True)
class Recall:
    """A text with answers in it.

    Parameters
    ----------
    ids : ndarray of int32, shape ``(tokens,)``
    answers : tuple of (int, int)
        Where each answer begins and ends: its tokens follow from what came long before.
    """

    ids: Ids
    answers: tuple[tuple[int, int], ...]


def recall(tokenizer: Any, kind: Kind, length: int, random: np.random.Generator, filler: Ids | None = None) -> Recall:
    """Return a text of about ``length`` tokens, never more.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    filler : ndarray of int32 or None
        Text that a needle is put into; at least ``length`` tokens.

    Raises
    ------
    BadInput
        If the kind is not known, the length is below 128, or a needle has no filler.
    """
    if kind not in KINDS or length < SHORTEST:
        raise BadInput(f"recall: kind {kind!r} of {length} tokens; choose {', '.join(KINDS)}, and {SHORTEST} or more")
    if kind == "needles":
        if filler is None or len(filler) < length:
            raise BadInput(f"recall: needles need {length} tokens of text to lie in; give more text")
        return _needles(tokenizer, length, random, filler)
    return _pairs(tokenizer, length, random) if kind == "pairs" else _copies(tokenizer, length, random)


def recalled(model: Any, tokenizer: Any, length: int, text: Ids, *, seed: int = 0, count: int = 8) -> dict[str, float]:
    """Return of each kind the share of answers that are whole, over ``count`` texts of ``length`` tokens.

    Parameters
    ----------
    model : transformers causal model
    text : ndarray of int32
        What needles are put into; at least ``length`` tokens.
    seed : int
        Of the texts: the same ones for every model with this tokenizer.
    """
    random = np.random.default_rng((seed, 1 << 20))
    return {
        str(kind): float(
            np.mean([answered(model, recall(tokenizer, kind, length, random, text)) for _ in range(count)])
        )
        for kind in KINDS
    }


def answered(model: Any, example: Recall) -> float:
    """Return the share of the answers of which every token is the network's likeliest."""
    ids = torch.from_numpy(example.ids.astype(np.int64))
    with torch.no_grad():
        guessed = model(ids[None], use_cache=False).logits[0].argmax(-1)
    return float(np.mean([bool((guessed[a - 1 : b - 1] == ids[a:b]).all()) for a, b in example.answers]))


def _names(random: np.random.Generator, count: int) -> list[str]:
    first, second = _FIRST.split(), _SECOND.split()
    picked = random.choice(len(first) * len(second), size=min(count, len(first) * len(second)), replace=False)
    return [f"{first[one // len(second)]} {second[one % len(second)]}" for one in picked.tolist()]


def _number(random: np.random.Generator) -> str:
    return str(int(random.integers(1000, 10_000)))


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _pairs(tokenizer: Any, length: int, random: np.random.Generator) -> Recall:
    said, asked = [], []
    for name in _names(random, 200):
        number = _number(random)
        said.append((_ids(tokenizer, f"The code of {name} is"), _ids(tokenizer, f" {number}"), _ids(tokenizer, ".\n")))
    each = max(len(a) + len(b) + len(c) for a, b, c in said)
    said = said[: max(1, length // (2 * each))]
    ids: list[int] = [one for parts in said for part in parts for one in part]
    answers = []
    for at in random.permutation(len(said)).tolist():
        ids += said[at][0]
        answers.append((len(ids), len(ids) + len(said[at][1])))
        ids += said[at][1] + said[at][2]
        asked.append(at)
    return Recall(np.array(ids[:length], dtype=np.int32), tuple(one for one in answers if one[1] <= length))


def _copies(tokenizer: Any, length: int, random: np.random.Generator) -> Recall:
    words = (_FIRST + " " + _SECOND).split()
    first = _ids(tokenizer, "List:")
    again = _ids(tokenizer, "\nAgain:")
    body: list[int] = []
    while len(first) + len(again) + 2 * len(body) + 24 < length:
        body += _ids(tokenizer, " " + words[int(random.integers(len(words)))])
    ids = first + body + again + body
    start = len(first) + len(body) + len(again)
    # The first words of the copy say where it is; what follows them can be known.
    return Recall(np.array(ids, dtype=np.int32), ((start + 2, len(ids)),))


def _taken(parts: list[tuple[list[int], list[int], list[int]]]) -> int:
    """Return the tokens of needles and of the questions for them."""
    return 2 * sum(len(one) for part in parts for one in part)


def _needles(tokenizer: Any, length: int, random: np.random.Generator, filler: Ids) -> Recall:
    count = int(random.integers(1, 4))
    parts = [
        (_ids(tokenizer, f"\nThe code of {name} is"), _ids(tokenizer, f" {_number(random)}"), _ids(tokenizer, ".\n"))
        for name in _names(random, count)
    ]
    while len(parts) > 1 and _taken(parts) > length // 2:
        parts.pop()
    room = length - _taken(parts)
    if room < 0:
        raise BadInput(f"recall: a needle takes {_taken(parts)} tokens of {length}; give a larger vocabulary")
    start = int(random.integers(0, len(filler) - room + 1))
    text = filler[start : start + room].tolist()
    places = sorted(random.integers(0, room + 1, size=len(parts)).tolist(), reverse=True)
    for place, (asked, answer, end) in zip(places, parts, strict=True):
        text[place:place] = asked + answer + end
    answers = []
    for asked, answer, end in parts:
        text += asked
        answers.append((len(text), len(text) + len(answer)))
        text += answer + end
    return Recall(np.array(text, dtype=np.int32), tuple(answers))
