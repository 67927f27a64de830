"""Texts whose deciding part stands at one place after another, all else equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.audit.checks import Integers

POSITIONS = 4
_EXAMPLES = 100


@dataclass(frozen=True)
class Composed:
    """Texts made of a deciding part among others.

    Parameters
    ----------
    deciding : tuple of str
    chosen : array (composed,)
        The places of the deciding parts among the texts that were given.
    texts : tuple of tuples of str
        For each position, first to last, one text for each deciding part.
    """

    deciding: tuple[str, ...]
    chosen: Integers
    texts: tuple[tuple[str, ...], ...]


def compose(texts: Sequence[str], labels: Integers | None = None, *, seed: int = 0) -> Composed:
    """Set each of at most 100 texts among three others, at the first, second, third and last place.

    Deciding parts and others are drawn from the shorter half of the texts, so that nothing is cut off; the others are
    of other classes where labels are known. They and their order are the same at every place.

    Parameters
    ----------
    texts : sequence of str
    labels : array (texts,), optional
    seed : int
    """
    rng = np.random.default_rng([seed, 5])
    lengths = np.array([len(text.split()) for text in texts])
    short = np.flatnonzero(lengths <= np.median(lengths))
    chosen = np.sort(rng.permutation(short)[:_EXAMPLES])
    composed: list[list[str]] = [[] for _ in range(POSITIONS)]
    for index in chosen.tolist():
        usable = short[short != index]
        if labels is not None and (labels[usable] != labels[index]).sum() >= POSITIONS - 1:
            usable = usable[labels[usable] != labels[index]]
        others = [texts[place] for place in rng.choice(usable, POSITIONS - 1, replace=len(usable) < POSITIONS - 1)]
        for position in range(POSITIONS):
            parts = [*others[:position], texts[index], *others[position:]]
            composed[position].append(" ".join(_ended(part) for part in parts))
    deciding = tuple(texts[index] for index in chosen.tolist())
    return Composed(deciding, chosen.astype(np.int64), tuple(map(tuple, composed)))


def _ended(text: str) -> str:
    text = text.strip()
    return text if text[-1:] in ".!?" else text + "."
