"""Operators: what a network does in one pass, each with its multiply-accumulates and what it moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRODUCTS = ("linear", "convolution", "depthwise", "attention", "product")
"""Kinds that multiply matrices; the others only move and change what they read."""

MATRICES = ("linear", "convolution", "depthwise")
"""Kinds whose weights are matrices, which may be stored in few bits."""


@dataclass(frozen=True)
class Product:
    """The shape of what is multiplied: ``groups`` products of (rows, inner) by (inner, columns)."""

    groups: int
    rows: int
    columns: int
    inner: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all groups."""
        return self.groups * self.rows * self.columns * self.inner


@dataclass(frozen=True)
class Operator:
    """One operator of a pass. Counts are of elements, so that any element type can be asked about.

    Parameters
    ----------
    name : str
        In torch, such as ``addmm``.
    module : str
        Path of the module that it belongs to; ``""`` for the network itself.
    kind : str
        One of `PRODUCTS`, or ``norm``, ``softmax``, ``activation``, ``embedding``, ``reduction``, ``copy``, ``cache``.
    macs, flops : int
        Multiply-accumulates, and operations: two a multiply-accumulate, and for others those of an element.
    weights, parameters : int
        Elements read of weight matrices, and of other parameters and buffers (biases, scales, rows of embeddings).
    reads, writes : int
        Elements of activations that are read and written.
    cache_reads, cache_writes : int
        Elements of the cache of keys and values.
    held : int
        Of what extends the cache: elements that it holds afterwards.
    index_bytes : int
        Bytes of integers and masks, whose size does not follow the element type.
    product : Product or None
        What is multiplied, where something is.
    joined : tuple of str
        Names of the operators that run within this one, element by element, as its result is written.
    """

    name: str
    module: str
    kind: str
    macs: int = 0
    flops: int = 0
    weights: int = 0
    parameters: int = 0
    reads: int = 0
    writes: int = 0
    cache_reads: int = 0
    cache_writes: int = 0
    held: int = 0
    index_bytes: int = 0
    product: Product | None = None
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pass:
    """One pass of a network: its operators in order, and how they hang together.

    Parameters
    ----------
    operators : tuple of Operator
    sources : tuple of tuple of int
        By operator, the operators whose results it reads.
    leaves : mapping of str to str
        The class of each module that has no modules within it, by path.
    cache : int
        Elements that the cache of keys and values holds after the pass.
    """

    operators: tuple[Operator, ...]
    sources: tuple[tuple[int, ...], ...]
    leaves: Mapping[str, str]
    cache: int = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the pass."""
        return sum(operator.macs for operator in self.operators)

    def macs_by_module(self) -> dict[str, int]:
        """Return the multiply-accumulates within each module; ``""`` is the whole network."""
        counted: dict[str, int] = {}
        for operator in self.operators:
            path = operator.module
            while True:
                counted[path] = counted.get(path, 0) + operator.macs
                if not path:
                    break
                path = path.rpartition(".")[0]
        return {path: macs for path, macs in counted.items() if macs or not path}
