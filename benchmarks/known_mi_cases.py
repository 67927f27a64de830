"""Distributions whose mutual information is known in closed form or by quadrature; numpy only.

Which half a case is in (of this file or of the public benchmark) is decided by a hash of its name: the default
estimator was set up looking at the ``tuning`` half only, and figures are given for both.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]
Draw = Callable[[np.random.Generator, int], Pair]


@dataclass(frozen=True)
class Case:
    """A distribution to draw from and the nats that its two sides share."""

    name: str
    draw: Draw
    nats: float

    def samples(self, count: int, seed: int) -> Pair:
        """Return ``count`` samples of both sides, shapes ``(count, dims)``; labels have shape ``(count,)``."""
        return self.draw(np.random.default_rng([seed, zlib.crc32(self.name.encode())]), count)


def half(name: str) -> str:
    """Return ``tuning`` or ``reported``: the parity of the first byte of SHA-256 of the name."""
    return "reported" if hashlib.sha256(name.encode()).digest()[0] % 2 else "tuning"


def cases() -> tuple[Case, ...]:
    """Return the analytic cases."""
    gaussians = [
        _gaussian("gaussian-1-rho0.3", [0.3]),
        _gaussian("gaussian-1-rho0.99", [0.99]),
        _gaussian("gaussian-2-rho0.9", [0.9] * 2),
        _gaussian("gaussian-8-rho0.5", [0.5] * 8),
        _gaussian("gaussian-16-rho0.2", [0.2] * 16),
        _gaussian("gaussian-32-rho0.3", [0.3] * 32),
        _gaussian("gaussian-64-sparse", [0.8, 0.6] + [0.0] * 62),
        _gaussian("gaussian-64-rho0.2", [0.2] * 64),
        _gaussian("gaussian-64-rho0.5", [0.5] * 64),
        _gaussian("independent-1", [0.0]),
        _gaussian("independent-8", [0.0] * 8),
        _gaussian("independent-64", [0.0] * 64),
    ]
    bent = [
        _bent("bent-2-rho0.8", [0.8] * 2),
        _bent("bent-4-rho0.5", [0.5] * 4),
        _bent("bent-16-sparse", [0.8, 0.6] + [0.0] * 14),
        _bent("bent-64-sparse", [0.8, 0.6] + [0.0] * 62),
    ]
    crosses = [_cross(f"cross-{dims}-rho{rho}", rho, dims) for rho, dims in ((0.9, 1), (0.8, 2), (0.8, 4))]
    others = [
        _ring("ring-noise0.3", 0.3),
        _ring("ring-noise0.05", 0.05),
        _additive("additive-0.01", 0.01),
        _scales("scales-1", 1.0),
        _channel("channel-4-0.2", 4, 0.2),
        _channel("channel-16-0.5", 16, 0.5),
        _classes("classes-2-1", 1, 1.0),
        _classes("classes-2-16", 16, 1.0),
        _classes("classes-2-64", 64, 1.5),
        _radii("radii-2", 2, 2.0),
        _radii("radii-8", 8, 1.5),
    ]
    return (*gaussians, *bent, *crosses, *others)


def gaussian_nats(correlations: npt.ArrayLike) -> float:
    """Return ``-1/2 sum log(1 - rho**2)``."""
    return float(-0.5 * np.log1p(-np.square(correlations)).sum())


def _pairs(correlations: list[float], rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    rho = np.asarray(correlations)
    x = rng.normal(size=(count, len(rho)))
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)


def _rotation(name: str, dims: int) -> Floats:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return np.linalg.qr(rng.normal(size=(dims, dims)))[0]


def _gaussian(name: str, correlations: list[float]) -> Case:
    left, right = _rotation(name + "x", len(correlations)), _rotation(name + "y", len(correlations))

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x, y = _pairs(correlations, rng, count)
        return x @ left, y @ right

    return Case(name, draw, gaussian_nats(correlations))


def _bent(name: str, correlations: list[float]) -> Case:
    """A Gaussian seen through two layers that can be undone: rotate, bend each coordinate, rotate, bend."""
    dims = len(correlations)
    turns = [_rotation(name + part, dims) for part in ("a", "b", "c", "d")]

    def bend(values: Floats) -> Floats:
        return values + 0.8 * np.sin(values) + 0.3 * np.maximum(values, 0)

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x, y = _pairs(correlations, rng, count)
        x, y = bend(x @ turns[0]) @ turns[1], bend(y @ turns[2]) @ turns[3]
        return bend(x), bend(y)

    return Case(name, draw, gaussian_nats(correlations))


def _cross(name: str, rho: float, dims: int) -> Case:
    """Pairs that are correlated by ``rho`` or by ``-rho``, a coin for each: uncorrelated, yet dependent."""
    grid, step = np.linspace(-8, 8, 1601, retstep=True)
    x, y = np.meshgrid(grid, grid)
    scale = 2 * (1 - rho**2)
    density = sum(np.exp(-(x**2 + y**2 - 2 * sign * rho * x * y) / scale) for sign in (1, -1))
    joint = density / (4 * np.pi * np.sqrt(1 - rho**2))
    product = np.exp(-(x**2 + y**2) / 2) / (2 * np.pi)
    nats = float((joint * np.log(np.maximum(joint, 1e-300) / product)).sum() * step**2)

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x, y = _pairs([rho] * dims, rng, count)
        return x, y * rng.choice([-1.0, 1.0], size=y.shape)

    return Case(name, draw, dims * nats)


def _ring(name: str, noise: float) -> Case:
    """A point on a circle, and another turned by a normal angle."""
    angles = np.linspace(-np.pi, np.pi, 20001)[:-1]
    density = sum(np.exp(-0.5 * ((angles + 2 * np.pi * turn) / noise) ** 2) for turn in range(-5, 6))
    density = density / (noise * np.sqrt(2 * np.pi))
    entropy = -float((density * np.log(np.maximum(density, 1e-300))).sum() * (angles[1] - angles[0]))

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x = rng.uniform(-np.pi, np.pi, count)
        y = x + noise * rng.normal(size=count)
        return np.column_stack([np.cos(x), np.sin(x)]) * rng.uniform(1, 2, (count, 1)), _onto_circle(y)

    return Case(name, draw, float(np.log(2 * np.pi)) - entropy)


def _onto_circle(angle: Floats) -> Floats:
    return np.mod(angle + np.pi, 2 * np.pi)[:, None] - np.pi


def _additive(name: str, width: float) -> Case:
    """``y = x + u``, x uniform on the unit interval, u on one of half-width ``width < 1/2``."""

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x = rng.uniform(0, 1, (count, 1))
        return x, x + rng.uniform(-width, width, x.shape)

    return Case(name, draw, width - float(np.log(2 * width)))


def _scales(name: str, spread: float) -> Case:
    """``y`` is normal with standard deviation ``exp(spread * x)``, x standard normal."""
    x, step = np.linspace(-8, 8, 2001, retstep=True)
    log_y, log_step = np.linspace(-25, 12, 4001, retstep=True)
    weight = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * step
    size = np.exp(log_y)
    density = np.zeros_like(size)
    for own, scale in zip(weight, np.exp(spread * x), strict=True):
        density += own * np.exp(-0.5 * (size / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
    # Half of y is negative: twice the integral over the positive half, in log y.
    entropy = -2 * float((density * np.log(np.maximum(density, 1e-300)) * size).sum() * log_step)

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x = rng.normal(size=(count, 1))
        return x, np.exp(spread * x) * rng.normal(size=x.shape)

    return Case(name, draw, entropy - 0.5 * float(np.log(2 * np.pi * np.e)))


def _channel(name: str, symbols: int, error: float) -> Case:
    """A symmetric channel: a symbol arrives, or with probability ``error`` another, each alike."""
    noise = -(1 - error) * np.log(1 - error) - error * np.log(error / (symbols - 1))

    def draw(rng: np.random.Generator, count: int) -> Pair:
        x = rng.integers(0, symbols, count)
        moved = rng.random(count) < error
        return x, (x + moved * rng.integers(1, symbols, count)) % symbols

    return Case(name, draw, float(np.log(symbols) - noise))


def _classes(name: str, dims: int, shift: float) -> Case:
    """Two classes alike, normal around ``+shift`` and ``-shift`` along one direction of a space."""
    grid, step = np.linspace(-14, 14, 20001, retstep=True)
    modes = [np.exp(-0.5 * (grid - sign * shift) ** 2) / np.sqrt(2 * np.pi) for sign in (1, -1)]
    mixed = 0.5 * (modes[0] + modes[1])
    nats = float((modes[0] * np.log(np.maximum(modes[0], 1e-300) / np.maximum(mixed, 1e-300))).sum() * step)
    turn = _rotation(name, dims)

    def draw(rng: np.random.Generator, count: int) -> Pair:
        label = rng.integers(0, 2, count)
        x = rng.normal(size=(count, dims))
        x[:, 0] += shift * (2 * label - 1)
        return x @ turn, label

    return Case(name, draw, nats)


def _radii(name: str, dims: int, ratio: float) -> Case:
    """Two classes alike, normal around the same centre with standard deviations 1 and ``ratio``."""
    grid = np.linspace(0, 60, 200001)[1:]
    logs = [(dims - 1) * np.log(grid / scale) - np.log(scale) - 0.5 * (grid / scale) ** 2 for scale in (1.0, ratio)]
    modes = [np.exp(log - log.max()) for log in logs]
    modes = [mode / mode.sum() for mode in modes]
    mixed = 0.5 * (modes[0] + modes[1])
    nats = sum(
        0.5 * float((mode * np.log(np.maximum(mode, 1e-300) / np.maximum(mixed, 1e-300))).sum()) for mode in modes
    )

    def draw(rng: np.random.Generator, count: int) -> Pair:
        label = rng.integers(0, 2, count)
        return rng.normal(size=(count, dims)) * np.where(label, ratio, 1.0)[:, None], label

    return Case(name, draw, nats)


def by_half(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of each half."""
    return {part: [name for name in names if half(name) == part] for part in ("tuning", "reported")}
