"""What one run of a network shows of how its tensors hang together, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from isthmus.sites.labels import Ties, Value


@dataclass(frozen=True)
class Call:
    """One call of a module: the labels of its first argument and of its output."""

    entered: Value | None
    left: Value | None


@dataclass(frozen=True)
class Sum:
    """Entries of an activation that are summed over with a weight: where closing a unit takes it away.

    ``labels`` (size,) are those along the dimension that is summed over.
    """

    weight: str
    labels: Tensor


@dataclass(frozen=True)
class Norm:
    """Entries over which a module takes mean and variance: closed ones must not count. ``labels`` is ``(size,)``."""

    module: str
    labels: Tensor


@dataclass(frozen=True)
class Pad:
    """Entries that a module adds as zeros before and after others; ``before`` and ``after`` are their labels."""

    module: str
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Obstacle:
    """What could not be followed: an operator, and the module in which it ran."""

    module: str
    operator: str


@dataclass
class Trace:
    """What one run of a network showed.

    ``tensors`` has the labels of parameters and buffers by name; ``calls`` those of what entered and left each module;
    ``heads`` those of the batches of products of activations; ``joint`` factors that depend on more than one dimension;
    ``shared`` all names of a tensor that has several (tied embeddings), by the first of them;
    ``results`` the network's outputs by name, each with the
    paths of the modules that returned it, the innermost first.
    """

    ties: Ties
    tensors: dict[str, Value] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    sums: list[Sum] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    joint: list[Tensor] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: dict[str, tuple[Value, tuple[str, ...]]] = field(default_factory=dict)
    standardized: set[str] = field(default_factory=set)
    """Modules that standardize their weight over what enters before they use it."""
    pads: list[Pad] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    chains: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By module path: identities of the tensors that entered and left each call."""
