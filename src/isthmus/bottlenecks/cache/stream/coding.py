"""Coding keys and values of a prompt: anchors, and what other tokens differ from them, each channel on its own grid.

CacheGen (Liu et al. 2023, arXiv 2310.07240): neighbouring tokens are alike, so each token of a group is coded by how
it differs from the group's first, the anchor; early layers get finer grids than late ones, for an error there costs
more; integers go through the entropy coder under tables by channel (`isthmus.storage.blobs`: rows are channels).
Anchors take 8 bits. What is decoded is exactly what was quantized, on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.errors import BadArtifact
from isthmus.storage import blobs
from isthmus.storage.coded import Uniform, decode, exponents_of
from isthmus.storage.entropy import read_varint, varint

Floats = npt.NDArray[np.float32]

GROUP = 10
"""Tokens of a group: an anchor, and nine that are coded as differences."""
_ANCHOR_TOP = 127
_LEAST, _MOST = 2.0**-40, 2.0**40


@dataclass(frozen=True)
class Level:
    """How fine a cache is coded.

    Parameters
    ----------
    name : str
    steps : tuple of float
        The step of differences in the first, middle and last third of the layers, in standard deviations of a channel's
        differences.
    """

    name: str
    steps: tuple[float, float, float]

    def step(self, layer: int, layers: int) -> float:
        """Return the step of a layer."""
        return self.steps[min(2, 3 * layer // max(layers, 1))]


LEVELS = (
    Level("finest", (0.05, 0.05, 0.05)),
    Level("fine", (0.15, 0.2, 0.25)),
    Level("medium", (0.3, 0.4, 0.5)),
    Level("coarse", (0.5, 0.75, 1.0)),
)
"""From the finest to the coarsest; a file names a level by its place here."""


def encode_matrix(numbers: Floats, step: float) -> bytes:
    """Return the keys or values of a layer and chunk as bytes.

    Parameters
    ----------
    numbers : ndarray of float32, shape ``(channels, tokens)``
        Finite; channels of all heads.
    step : float
        In standard deviations of a channel's differences.
    """
    anchors, differences = quantized(numbers, step)
    out = bytearray()
    for part in (anchors, differences):
        body = b"" if part is None else blobs.pack(part)
        out += varint(len(body)) + body
    return bytes(out)


def quantized(numbers: Floats, step: float) -> tuple[Uniform, Uniform | None]:
    """Return the codes of the anchors and of the differences of the other tokens; None where there are no others."""
    peaks = np.abs(numbers[:, ::GROUP]).max(1)
    anchors = _on_grid(numbers[:, ::GROUP], peaks / _ANCHOR_TOP)
    others = _others(numbers.shape[1])
    if not len(others):
        return anchors, None
    differences = numbers[:, others] - decode(anchors)[:, others // GROUP]
    return anchors, _on_grid(differences, step * np.sqrt(np.square(differences, dtype=np.float64).mean(1)))


def dequantized(anchors: Uniform, differences: Uniform | None, tokens: int) -> Floats:
    """Return the numbers that codes stand for, float32 of shape ``(channels, tokens)``."""
    out = np.empty((anchors.shape[0], tokens), dtype=np.float32)
    found = decode(anchors)
    out[:, ::GROUP] = found
    if differences is not None:
        others = _others(tokens)
        out[:, others] = found[:, others // GROUP] + decode(differences)
    return out


def decode_matrix(data: bytes, at: int, end: int, channels: int, tokens: int) -> tuple[Floats, int]:
    """Return the numbers that begin at a place in the bytes, ``(channels, tokens)``, and the place behind them.

    Raises
    ------
    BadArtifact
        If the bytes are truncated or changed: nothing that they claim is allocated before it is checked.
    """
    shapes = [(channels, -(-tokens // GROUP)), (channels, len(_others(tokens)))]
    parts: list[Uniform | None] = []
    for shape in shapes:
        size, at = read_varint(data, at, end)
        if size > end - at or bool(size) != bool(shape[1]):
            raise BadArtifact(
                f"cache file: truncated or damaged ({size} bytes announced, {end - at} left); save it again"
            )
        if not size:
            parts.append(None)
            continue
        found = blobs.unpack(data[at : at + size], shape)
        if not isinstance(found, Uniform):
            raise BadArtifact("cache file: truncated or damaged (a code of another kind); save it again")
        parts.append(found)
        at += size
    assert parts[0] is not None
    return dequantized(parts[0], parts[1], tokens), at


def _others(tokens: int) -> npt.NDArray[np.int64]:
    places = np.arange(tokens)
    return places[places % GROUP > 0]


def _on_grid(numbers: Floats, scales: npt.NDArray[np.floating]) -> Uniform:
    exponents = exponents_of(np.clip(scales, _LEAST, _MOST))[:, None]
    grid = decode(Uniform(np.ones((len(numbers), 1), dtype=np.int32), (exponents,)))
    return Uniform(np.rint(numbers / grid).astype(np.int32), (exponents,))
