"""Sending: the level of each chunk from the bandwidth seen so far, or the text instead, so that a deadline is met.

CacheGen, section 5.3: chunks are sent one after another; before each, the finest level is taken at which all that is
left would still arrive in time at the bandwidth of the last chunk. Where none would, the text is sent and read again if
that is sooner, and otherwise the coarsest level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isthmus.errors import BadInput

TEXT = -1
"""The level of a chunk that is sent as text."""


@dataclass(frozen=True)
class Sent:
    """What was sent.

    Parameters
    ----------
    levels : tuple of int
        Of each chunk; `TEXT`: the text.
    seconds : float
        Until the last had arrived and, as text, was read.
    bytes : int
    """

    levels: tuple[int, ...]
    seconds: float
    bytes: int


def best_level(
    left: Sequence[Sequence[int]],
    bandwidth: float,
    seconds: float,
    reading: Sequence[float] | None = None,
) -> int:
    """Return the level of the next chunk.

    Parameters
    ----------
    left : sequence of sequence of int
        Bytes of the chunks that are left, each at every level, the finest first.
    bandwidth : float
        Bytes a second.
    seconds : float
        Until the deadline.
    reading : sequence of float or None
        Seconds that the network takes to read the text of each chunk anew; None: text cannot be sent.
    """
    levels = range(len(left[0]))
    fitting = [level for level in levels if sum(sizes[level] for sizes in left) <= bandwidth * seconds]
    if fitting:
        return fitting[0]
    coarsest = len(left[0]) - 1
    if reading is not None and reading[0] < left[0][coarsest] / bandwidth:
        return TEXT
    return coarsest


def send(
    sizes: Sequence[Sequence[int]],
    bandwidth: Callable[[float], float],
    *,
    deadline: float,
    expected: float,
    reading: Sequence[float] | None = None,
    fixed: int | None = None,
) -> Sent:
    """Send chunks over a line whose bandwidth changes, and return what was sent when.

    Parameters
    ----------
    sizes : sequence of sequence of int
        Bytes of each chunk at every level.
    bandwidth : callable
        From seconds since the start to bytes a second, as seen when a chunk starts.
    deadline : float
        Seconds.
    expected : float
        Bytes a second, before the first chunk was sent.
    reading : sequence of float or None
        As in `best_level`.
    fixed : int or None
        A level for all chunks, whatever the bandwidth.

    Raises
    ------
    BadInput
        If there are no chunks, or a bandwidth or the deadline is not above zero.
    """
    if not sizes or not (deadline > 0 and expected > 0):
        raise BadInput(
            f"cache: {len(sizes)} chunks, a deadline of {deadline} s, {expected} bytes a second; all are to be above 0"
        )
    now, known, total, levels = 0.0, expected, 0, []
    for index, own in enumerate(sizes):
        texts = None if reading is None else reading[index:]
        level = fixed if fixed is not None else best_level(sizes[index:], known, deadline - now, texts)
        levels.append(level)
        if level == TEXT:
            assert reading is not None
            now += reading[index]
            continue
        known = bandwidth(now)
        if not known > 0:
            raise BadInput(f"cache: a bandwidth of {known} bytes a second after {now:.3g} s; it is to be above 0")
        now += own[level] / known
        total += own[level]
    return Sent(tuple(levels), now, total)
