"""Micro-benchmarks: which operators are timed to learn what an engine makes of a shape.

The shapes are chosen to span what networks have, not taken from one: the fit is tested on networks that it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

JOINED = "linear joined"
"""A linear map with an activation in it; engines take other routines for these."""

RMS = "rms norm"
"""A norm without a mean, which engines take in one pass."""

_MOST = 110_000_000  # multiply-accumulates: what takes longer than a few ms is disturbed in every round


@dataclass(frozen=True)
class Probe:
    """One operator to be timed.

    ``shape`` by kind: ``linear`` and `JOINED` (rows, inner, columns); ``convolution`` and ``depthwise`` (batch,
    channels in, channels out, size, kernel, stride); ``attention`` (batch, heads, heads of keys, rows, keys, head
    size); ``norm``, `RMS`, ``softmax``, ``activation``, ``addition`` and ``embedding`` (rows, width); ``transposition``
    (batch, rows, heads, head size); ``pooling`` (channels, size, kernel, stride).
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """What it is called in the engine's graph and in a profile."""
        return f"{self.kind} " + "x".join(str(size) for size in self.shape)


def _linear() -> list[Probe]:
    maps = ((256, 256), (320, 1280), (1280, 320), (512, 512), (640, 1920), (1920, 640), (1024, 1024), (768, 192))
    shapes = [(rows, *sizes) for sizes in maps for rows in (1, 4, 16, 48, 128) if rows * sizes[0] * sizes[1] <= _MOST]
    wide = [(320, 256, 256), (256, 512, 512), (1, 2048, 4096), (1, 1024, 4096), (8, 2048, 2048), (1, 512, 12288)]
    joined = [*shapes, (1, 1024, 4096), (1, 2048, 2048)]
    return [Probe("linear", shape) for shape in shapes + wide] + [Probe(JOINED, shape) for shape in joined]


def _convolutions() -> list[Probe]:
    shapes = [
        (1, 3, 32, 160, 7, 2),
        (1, 3, 48, 160, 3, 2),
        (1, 3, 256, 160, 16, 16),
        (4, 3, 192, 96, 8, 8),
        (1, 48, 48, 40, 3, 1),
        (1, 96, 96, 20, 3, 1),
        (1, 192, 192, 10, 3, 1),
        (1, 384, 384, 5, 3, 1),
        (1, 48, 192, 40, 1, 1),
        (1, 192, 48, 40, 1, 1),
        (1, 384, 96, 20, 1, 1),
        (1, 96, 384, 20, 1, 1),
        (1, 768, 192, 10, 1, 1),
        (1, 192, 768, 10, 1, 1),
        (1, 1536, 384, 5, 1, 1),
        (1, 96, 96, 40, 3, 2),
        (1, 192, 192, 20, 3, 2),
        (1, 192, 384, 40, 1, 2),
        (2, 64, 64, 40, 3, 1),
        (2, 192, 192, 12, 3, 1),
        (1, 512, 512, 4, 3, 1),
        (1, 1024, 512, 8, 1, 2),
    ]
    depthwise = [(1, 48, 48, 80, 3, 1), (1, 192, 192, 40, 3, 1), (1, 384, 384, 20, 5, 1), (1, 96, 96, 80, 3, 2)]
    return [Probe("convolution", shape) for shape in shapes] + [Probe("depthwise", shape) for shape in depthwise]


def _attention() -> list[Probe]:
    shapes = [
        (batch, heads, heads, rows, rows, size)
        for batch, heads, size in ((1, 8, 32), (1, 10, 64), (4, 6, 48), (1, 16, 64))
        for rows in (16, 48, 128, 192)
    ]
    shapes += [(1, heads, kv, 1, keys, 64) for heads, kv in ((8, 8), (16, 4), (32, 8)) for keys in (40, 160, 640)]
    return [Probe("attention", shape) for shape in shapes]


def _movements() -> list[Probe]:
    rows = [(1, 512), (4, 320), (16, 640), (48, 384), (160, 320), (160, 1280), (320, 640), (640, 1024)]
    found = [Probe(kind, shape) for kind in ("norm", "softmax", "activation", "addition") for shape in rows]
    found += [Probe(kind, shape) for kind in (RMS, "embedding") for shape in rows]
    heads = ((1, 16, 8, 32), (1, 160, 8, 64), (4, 48, 6, 48), (1, 320, 16, 64))
    found += [Probe("transposition", shape) for shape in heads]
    found += [Probe("pooling", shape) for shape in ((48, 80, 3, 2), (96, 40, 3, 2), (512, 8, 8, 8), (1536, 5, 5, 5))]
    return found


PROBES: tuple[Probe, ...] = (*_linear(), *_convolutions(), *_attention(), *_movements())

STREAM = Probe("addition", (2048, 8192))
"""The sum of two arrays of 64 MiB in float32, far beyond the caches: what STREAM (McCalpin, 1995) calls Add."""


def macs(probe: Probe) -> int:
    """Return the multiply-accumulates of a probe; zero for what multiplies no matrices."""
    shape = probe.shape
    if probe.kind in ("linear", JOINED):
        return prod(shape)
    if probe.kind in ("convolution", "depthwise"):
        batch, inside, outside, size, kernel, stride = shape
        each = 1 if probe.kind == "depthwise" else inside
        return batch * outside * each * kernel**2 * spatial(size, kernel, stride) ** 2
    if probe.kind == "attention":
        batch, heads, _, rows, keys, size = shape
        return 2 * batch * heads * rows * keys * size
    return 0


def spatial(size: int, kernel: int, stride: int) -> int:
    """Return the size of an output with padding of half a kernel (none for patches)."""
    return (size + 2 * padding(kernel, stride) - kernel) // stride + 1


def padding(kernel: int, stride: int) -> int:
    """Return the padding of a probe's windows: none where they do not overlap."""
    return 0 if kernel == stride else kernel // 2
