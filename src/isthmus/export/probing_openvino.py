"""Micro-benchmarks in OpenVINO: all probes as branches of one graph, timed by the engine's own counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isthmus.cost.roofline.probes import JOINED, RMS, Probe, padding
from isthmus.export.profiling import compile_counted, counted_rounds, node_type, original_names

_PROBE, _WARM = "probe", "warm"
_TABLE = 4096  # rows of an embedding that is probed
Node = Any


class OpenVinoBench:
    """Probes made ready in OpenVINO.

    Each branch is: an input, a pass over it that leaves it in the caches, the operator, and one entry of its output.
    The operator's output so lies in memory that the engine uses again, as within a network.
    """

    def __init__(self, probes: Sequence[Probe], dtype: str, threads: int | None) -> None:
        import openvino
        from openvino import opset13 as ops

        self.count = len(probes)
        self.feeds: list[np.ndarray[Any, Any]] = []
        parameters: list[Node] = []
        outputs: list[Node] = []
        generator = np.random.default_rng(0)

        def warm(*shape: int) -> Node:
            self.feeds.append(generator.random(shape, np.float32))
            parameters.append(ops.parameter(list(shape), np.float32))
            # A softmax, for the engine joins it with nothing that follows.
            made = ops.softmax(parameters[-1], -1)
            made.set_friendly_name(f"{_WARM}{len(parameters)}")
            return made

        def tokens(rows: int) -> Node:
            self.feeds.append(generator.integers(0, _TABLE, (1, rows)))
            parameters.append(ops.parameter([1, rows], np.int64))
            return parameters[-1]

        def weights(*shape: int) -> Node:
            return ops.constant(generator.standard_normal(shape, np.float32))

        for index, probe in enumerate(probes):
            source = tokens if probe.kind == "embedding" else warm
            made = _BUILDERS[probe.kind](ops, probe.shape, source, weights)
            made.set_friendly_name(f"{_PROBE}{index}")
            rank = len(made.get_output_shape(0))
            outputs.append(ops.result(ops.slice(made, [0] * rank, [1] * rank, [1] * rank)))
        self.graph = openvino.Model(outputs, parameters, "probes")
        self.dtype, self.threads = dtype, threads

    def rounds(self, count: int) -> list[list[float]]:
        """Compile, run every probe ``count`` times and return the seconds of each, by run."""
        compiled = compile_counted(self.graph, self.dtype, self.threads)
        branches = _branches(compiled, self.count)
        times, _ = counted_rounds(compiled, self.feeds, count)
        none = np.zeros(count)
        rows = [sum((times.get(node, none) for node in nodes), none) for nodes in branches]
        found: list[list[float]] = np.stack(rows, axis=1).tolist()
        return found


def _branches(compiled: Any, count: int) -> list[list[str]]:
    """Return by probe the nodes that carry it out: from the one that holds it back to the pass that warms its input."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    found: list[list[str]] = [[] for _ in range(count)]
    for node in nodes:
        for name in original_names(node):
            if not name.startswith(_PROBE):
                continue
            reached, seen = [node], set()
            while reached:
                one = reached.pop()
                name_here = one.get_friendly_name()
                if name_here in seen or any(part.startswith(_WARM) for part in original_names(one)):
                    continue
                seen.add(name_here)
                # Between convolutions tensors stay in the layout that these want, so that reordering is not theirs.
                if node_type(one) not in ("Reorder", "Convert", "Input"):
                    found[int(name[len(_PROBE) :])].append(name_here)
                reached += [one.input_value(index).get_node() for index in range(one.get_input_size())]
    return found


def _linear(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    rows, inner, columns = shape
    return ops.add(ops.matmul(source(1, rows, inner), weights(columns, inner), False, True), weights(1, 1, columns))


def _joined(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    return ops.gelu(_linear(ops, shape, source, weights), "erf")


def _convolution(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    batch, inside, outside, size, kernel, stride = shape
    pad = [padding(kernel, stride)] * 2
    table = weights(outside, inside, kernel, kernel)
    made = ops.convolution(source(batch, inside, size, size), table, [stride] * 2, pad, pad, [1, 1])
    return ops.relu(ops.add(made, weights(1, outside, 1, 1)))


def _depthwise(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    batch, inside, _, size, kernel, stride = shape
    pad = [padding(kernel, stride)] * 2
    table = weights(inside, 1, 1, kernel, kernel)
    made = ops.group_convolution(source(batch, inside, size, size), table, [stride] * 2, pad, pad, [1, 1])
    return ops.relu(ops.add(made, weights(1, inside, 1, 1)))


def _attention(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    batch, heads, kv, rows, keys, size = shape

    def split(count: int, length: int) -> Node:
        given = ops.reshape(source(batch, length, count * size), [batch, length, count, size], False)
        return ops.transpose(given, [0, 2, 1, 3])

    def repeated(given: Node) -> Node:
        if kv == heads:
            return given
        wide = ops.broadcast(ops.unsqueeze(given, 2), [batch, kv, heads // kv, keys, size], "BIDIRECTIONAL")
        return ops.reshape(wide, [batch, heads, keys, size], False)

    def cached() -> Node:
        # One row reads a cache, which lies head by head; more rows come from projections, token by token.
        return repeated(source(batch, kv, keys, size) if rows == 1 else split(kv, keys))

    made = ops.scaled_dot_product_attention(split(heads, rows), cached(), cached())
    return ops.reshape(ops.transpose(made, [0, 2, 1, 3]), [batch, rows, heads * size], False)


def _norm(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    made = ops.mvn(source(1, *shape), [-1], True, 1e-5, "INSIDE_SQRT")
    return ops.add(ops.multiply(made, weights(1, 1, shape[1])), weights(1, 1, shape[1]))


def _rms(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    given, one = source(1, *shape), np.float32(1.0)
    squares = ops.reduce_mean(ops.power(given, np.float32(2.0)), np.array([-1]), True)
    scale = ops.divide(one, ops.sqrt(ops.add(squares, np.float32(1e-6))))
    return ops.multiply(weights(1, 1, shape[1]), ops.multiply(given, scale))


def _softmax(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    return ops.softmax(source(1, *shape), -1)


def _activation(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    return ops.gelu(source(*shape), "erf")


def _addition(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    return ops.add(source(*shape), source(*shape))


def _embedding(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    return ops.gather(weights(_TABLE, shape[1]), source(shape[0]), 0)


def _transposition(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    return ops.transpose(source(*shape), [0, 2, 1, 3])


def _pooling(ops: Any, shape: tuple[int, ...], source: Callable[..., Node], weights: Callable[..., Node]) -> Node:
    from openvino import opset1

    channels, size, kernel, stride = shape
    pad = [padding(kernel, stride)] * 2
    return opset1.max_pool(source(1, channels, size, size), [stride] * 2, pad, pad, [kernel] * 2)


_BUILDERS: dict[str, Callable[..., Node]] = {
    "linear": _linear,
    JOINED: _joined,
    "convolution": _convolution,
    "depthwise": _depthwise,
    "attention": _attention,
    "norm": _norm,
    RMS: _rms,
    "softmax": _softmax,
    "activation": _activation,
    "addition": _addition,
    "embedding": _embedding,
    "transposition": _transposition,
    "pooling": _pooling,
}
