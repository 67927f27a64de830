"""Efficiency: what share of the peak an engine reaches at a shape, fitted to micro-benchmarks.

The time of a kernel is modelled as a fixed overhead, the time of its arithmetic and the time of what it moves:

    t = o + (F / P) (1 + r / rows + c / columns + i / inner) + W / B_w + A / B_a

with F operations, W bytes of weights and cache, A bytes of activations. ``r``, ``c`` and ``i`` are the sizes at which
a product runs at half of the rate P (half-performance lengths: Hockney and Jesshope, Parallel Computers 2, 1988);
written out, the model is linear in its six rates, none of which may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.cost.roofline.operators import PRODUCTS, Operator, Product
from isthmus.cost.roofline.probes import JOINED, RMS, Probe, macs, spatial

FEATURES = ("overhead", "operations", "by rows", "by columns", "by inner", "weights", "activations")


@dataclass(frozen=True)
class Work:
    """What a kernel has to do: operations, bytes of weights (and cache), bytes of activations, and the product."""

    operations: float
    weight_bytes: float
    activation_bytes: float
    product: Product | None = None

    def features(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Return the features of the model, in the order of `FEATURES`."""
        work = [0.0, 0.0, 0.0, 0.0]
        if self.product is not None:
            one = self.product
            work = [2.0 * one.macs, *(2.0 * one.macs / size for size in (one.rows, one.columns, one.inner))]
        return np.array([1.0, *work, self.weight_bytes, self.activation_bytes])


@dataclass(frozen=True)
class Curve:
    """Seconds of each of `FEATURES` for one kind of kernel, and the median relative error of the fit."""

    rates: tuple[float, ...]
    error: float

    def seconds(self, work: Work) -> float:
        """Return the predicted time of a kernel."""
        return float(work.features() @ np.array(self.rates))


def fit(works: Sequence[Work], seconds: Sequence[float]) -> Curve:
    """Fit a curve that is not negative to measured times, by least squares of the relative error.

    Twice, the second time with little weight on what the first left far off: a disturbed machine makes outliers.
    """
    from scipy.optimize import nnls

    matrix = np.stack([work.features() for work in works])
    times = np.maximum(np.asarray(seconds, dtype=float), 1e-7)
    scale = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    weight = 1.0 / times
    for _ in range(6):
        solution, _ = nnls(matrix / scale * weight[:, None], times * weight)
        predicted = np.maximum(matrix / scale @ solution, 1e-12)
        error = np.abs(predicted / times - 1.0)
        weight = 1.0 / times / np.sqrt(np.maximum(error, 0.05))  # towards the least sum of absolute relative errors
    return Curve(tuple((solution / scale).tolist()), float(np.median(error)))


def curves(measured: Mapping[Probe, float], bytes_each: int) -> dict[str, Curve]:
    """Return a curve for each kind of probe that was timed, and one more for products of one row."""
    groups: dict[str, list[Probe]] = {}
    for probe in measured:
        groups.setdefault(_curve_name(probe.kind, _product(probe)), []).append(probe)
    return {
        name: fit([probe_work(probe, bytes_each) for probe in chosen], [measured[probe] for probe in chosen])
        for name, chosen in groups.items()
        if len(chosen) > 1
    }


def _curve_name(kind: str, product: Product | None) -> str:
    """Return the curve of a kind; products with one row, such as a decoder's, run in routines of their own."""
    return f"{kind}, one row" if product is not None and product.rows == 1 else kind


def curve_of(operator: Operator, known: Mapping[str, Curve]) -> Curve | None:
    """Return the curve that an operator's time is read from, or None where nothing like it was timed."""
    joined = operator.kind == "linear" and operator.joined and JOINED in known
    kind = JOINED if joined else operator.kind
    if (name := _curve_name(kind, operator.product)) in known:
        return known[name]
    if joined:
        return known[kind]
    if operator.kind == "norm" and "rms" in operator.name.lower() and RMS in known:
        return known[RMS]
    if operator.kind == "activation" and operator.reads >= 2 * operator.writes and "addition" in known:
        return known["addition"]
    if operator.kind in known:
        return known[operator.kind]
    return known.get(_ALIKE.get(operator.kind, "activation"))


# What is not probed itself, and what is most like it.
_ALIKE = {"product": "attention", "copy": "transposition", "cache": "transposition", "reduction": "pooling"}


def probe_work(probe: Probe, size: int) -> Work:
    """Return what a probe has to do, with elements of ``size`` bytes."""
    product = _product(probe)
    operations = 2.0 * macs(probe)
    shape = probe.shape
    if probe.kind in ("linear", JOINED):
        rows, inner, columns = shape
        return Work(operations, size * (inner + 1) * columns, size * rows * (inner + columns), product)
    if probe.kind in ("convolution", "depthwise"):
        batch, inside, outside, width, kernel, stride = shape
        weights = outside * (1 if probe.kind == "depthwise" else inside) * kernel**2 + outside
        moved = batch * (inside * width**2 + outside * spatial(width, kernel, stride) ** 2)
        return Work(operations, size * weights, size * moved, product)
    if probe.kind == "attention":
        batch, heads, kv, rows, keys, width = shape
        own, cache = 2 * batch * heads * rows * width, 2 * batch * kv * keys * width
        # One row reads a cache; more rows read what was just computed.
        return Work(operations, size * cache if rows == 1 else 0.0, size * (own + (cache if rows > 1 else 0)), product)
    if probe.kind == "pooling":
        channels, width, kernel, stride = shape
        return Work(0.0, 0.0, size * channels * (width**2 + spatial(width, kernel, stride) ** 2))
    elements = int(np.prod(shape))
    if probe.kind == "embedding":
        return Work(0.0, size * elements, size * elements)
    return Work(0.0, 0.0, size * elements * (3 if probe.kind == "addition" else 2))


def _product(probe: Probe) -> Product | None:
    shape = probe.shape
    if probe.kind in ("linear", JOINED):
        return Product(1, shape[0], shape[2], shape[1])
    if probe.kind == "attention":
        batch, heads, _, rows, keys, size = shape
        return Product(batch * heads, rows, keys, 2 * size)
    if probe.kind in ("convolution", "depthwise"):
        batch, inside, outside, size, kernel, stride = shape
        rows = batch * spatial(size, kernel, stride) ** 2
        groups = inside if probe.kind == "depthwise" else 1
        return Product(groups, rows, outside // groups, inside // groups * kernel**2)
    return None


def is_product(kind: str) -> bool:
    """Return whether a kind multiplies matrices."""
    return kind in PRODUCTS
