"""The roofline of a pass: for each kernel its bytes, its intensity, what bounds it and how long it should take."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from isthmus.cost.roofline.devices import Device
from isthmus.cost.roofline.efficiency import Work, curve_of
from isthmus.cost.roofline.elements import Elements
from isthmus.cost.roofline.joining import joined
from isthmus.cost.roofline.operators import Operator, Pass

_LAYER = re.compile(r"^(.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True)
class Row:
    """A kernel, or several added up: operations, bytes and seconds.

    ``bound`` is ``compute`` or ``memory``, whichever takes longer at the device's peaks; ``ideal`` is that time and
    ``seconds`` the one that is predicted.
    """

    name: str
    kind: str
    module: str
    count: int
    macs: int
    flops: int
    weight_bytes: float
    activation_bytes: float
    cache_bytes: float
    compute_seconds: float
    memory_seconds: float
    ideal: float
    seconds: float

    @property
    def bytes(self) -> float:
        """All bytes that are moved."""
        return self.weight_bytes + self.activation_bytes + self.cache_bytes

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def bound(self) -> str:
        """What takes longer at the device's peaks."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


@dataclass(frozen=True)
class Roofline:
    """The roofline of one pass of a network on a device.

    ``parameters`` are those of the whole network, ``cache_bytes`` what its cache holds after the pass.
    """

    network: str
    phase: str
    batch: int
    device: Device
    elements: Elements
    rows: tuple[Row, ...]
    parameters: int
    cache_bytes: float
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Row:
        """All kernels added up."""
        return add_up("total", "", self.rows)

    @property
    def balance(self) -> float:
        """The intensity (operations a byte) above which the device is bound by its arithmetic."""
        return self.device.peak(self.elements.product) / self.device.bandwidth

    def by_kind(self) -> tuple[Row, ...]:
        """Return one row for each kind of kernel, the longest first."""
        return _grouped(self.rows, lambda row: row.kind)

    def by_layer(self) -> tuple[Row, ...]:
        """Return one row for each layer, and for each part outside the layers, in their order."""
        return _grouped(self.rows, lambda row: layer_of(row.module), ordered=False)

    def by_module(self) -> dict[str, float]:
        """Return the predicted seconds by module."""
        seconds: dict[str, float] = {}
        for row in self.rows:
            seconds[row.module] = seconds.get(row.module, 0.0) + row.seconds
        return seconds


def analyse(
    traced: Pass,
    device: Device,
    elements: Elements,
    *,
    network: str = "network",
    phase: str = "encode",
    batch: int = 1,
    parameters: int = 0,
    fused: bool = True,
    appends: bool = True,
    notes: Sequence[str] = (),
) -> Roofline:
    """Lay a pass against a device's roofline.

    Parameters
    ----------
    traced : Pass
    device : Device
    elements : Elements
        Element types of weights, activations and cache.
    fused : bool
        Whether the engine joins element-wise work with what comes before it (see ``joining``); torch does not.
    appends : bool
        Whether it puts new keys and values behind those that the cache holds, or else writes all of them anew.

    Raises
    ------
    BadInput
        If the device does not compute in these element types.
    """
    kernels = joined(traced) if fused else traced.operators
    if not appends:
        kernels = tuple(_written_anew(kernel) if kernel.held else kernel for kernel in kernels)
    rows = tuple(_row(kernel, device, elements) for kernel in kernels if _does_something(kernel))
    cache = float(traced.cache * elements.activation_bytes)
    return Roofline(network, phase, batch, device, elements, rows, parameters, cache, tuple(notes))


def layer_of(path: str) -> str:
    """Return the layer that a module belongs to: its path up to the first number, or up to the first dot."""
    found = _LAYER.match(path)
    return found[1] if found else path.partition(".")[0]


def _written_anew(kernel: Operator) -> Operator:
    return replace(kernel, kind="copy", reads=kernel.held, writes=kernel.held, cache_writes=0)


def _does_something(kernel: Operator) -> bool:
    moved = (kernel.weights, kernel.parameters, kernel.reads, kernel.writes, kernel.cache_reads, kernel.cache_writes)
    return bool(kernel.flops or kernel.index_bytes or any(moved))


def _row(kernel: Operator, device: Device, elements: Elements) -> Row:
    weights, cache = elements.weight_bytes(kernel), elements.cache_bytes(kernel)
    moved = elements.read_bytes(kernel) + elements.written_bytes(kernel)
    compute = kernel.flops / device.peak(elements.computes(kernel))
    memory = (weights + cache + moved) / device.bandwidth
    ideal = max(compute, memory)
    curve = curve_of(kernel, device.curves)
    work = Work(kernel.flops, weights + cache, moved, kernel.product)
    return Row(
        name=kernel.name,
        kind=kernel.kind,
        module=kernel.module,
        count=1,
        macs=kernel.macs,
        flops=kernel.flops,
        weight_bytes=weights,
        activation_bytes=moved,
        cache_bytes=cache,
        compute_seconds=compute,
        memory_seconds=memory,
        ideal=ideal,
        seconds=ideal if curve is None else curve.seconds(work),
    )


def add_up(name: str, module: str, rows: Sequence[Row]) -> Row:
    """Return several rows as one."""
    kinds = {row.kind for row in rows}
    return Row(
        name=name,
        kind=kinds.pop() if len(kinds) == 1 else "",
        module=module,
        count=sum(row.count for row in rows),
        macs=sum(row.macs for row in rows),
        flops=sum(row.flops for row in rows),
        weight_bytes=sum(row.weight_bytes for row in rows),
        activation_bytes=sum(row.activation_bytes for row in rows),
        cache_bytes=sum(row.cache_bytes for row in rows),
        compute_seconds=sum(row.compute_seconds for row in rows),
        memory_seconds=sum(row.memory_seconds for row in rows),
        ideal=sum(row.ideal for row in rows),
        seconds=sum(row.seconds for row in rows),
    )


def _grouped(rows: Sequence[Row], key: Callable[[Row], str], *, ordered: bool = True) -> tuple[Row, ...]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    found = [add_up(name, name, group) for name, group in groups.items()]
    return tuple(sorted(found, key=lambda row: -row.seconds) if ordered else found)
