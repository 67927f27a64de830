"""Element types: how many bits weights, activations and the cache take, and what products are computed in."""

from __future__ import annotations

from dataclasses import dataclass

from isthmus.cost.roofline.operators import MATRICES, Operator
from isthmus.errors import unknown


@dataclass(frozen=True)
class Elements:
    """The element types of a pass.

    Parameters
    ----------
    name : str
    weight_bits : int
        Of weight matrices; other parameters are stored as activations are.
    group : int
        Weights that share a scale of 16 bits; 0: weights have no scales.
    product : str
        What the products with weights are computed in.
    activation : str
        What everything else is computed in and stored as, the cache too.
    product_bits : int
        Of the activations that products with weights read.
    """

    name: str
    weight_bits: int
    group: int
    product: str
    activation: str
    product_bits: int

    @property
    def activation_bytes(self) -> int:
        """Bytes of an activation."""
        return BYTES[self.activation]

    def weight_bytes(self, operator: Operator) -> float:
        """Return the bytes of an operator's parameters that are read, scales included."""
        others = operator.parameters * self.activation_bytes
        if operator.kind not in MATRICES:
            return float(operator.weights * self.activation_bytes + others)
        scales = 16 * operator.weights / self.group if self.group else 0.0
        return (operator.weights * self.weight_bits + scales) / 8 + others

    def read_bytes(self, operator: Operator) -> float:
        """Return the bytes of activations that an operator reads, without the cache."""
        bits = self.product_bits if operator.kind in MATRICES else 8 * self.activation_bytes
        return operator.reads * bits / 8 + operator.index_bytes

    def written_bytes(self, operator: Operator) -> float:
        """Return the bytes of activations that an operator writes, without the cache."""
        return float(operator.writes * self.activation_bytes)

    def cache_bytes(self, operator: Operator) -> float:
        """Return the bytes of the cache that an operator reads and writes."""
        return float((operator.cache_reads + operator.cache_writes) * self.activation_bytes)

    def computes(self, operator: Operator) -> str:
        """Return the element type that an operator computes in."""
        return self.product if operator.kind in MATRICES else self.activation


BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
NAMES = ("float32", "float16", "bfloat16", "int8", "int4", "w8a8")
"""float32 and bfloat16 throughout; float16, int8 and int4: weights of so many bits, of the integers with a scale for
every 128, computed in what activations are in; w8a8: weights and what meets them of 8 bits, multiplied as integers."""

GROUP = 128


def elements(name: str, activation: str = "bfloat16") -> Elements:
    """Return element types by name.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    activation : {"bfloat16", "float32"}
        What activations are in where only the weights are in few bits.

    Raises
    ------
    BadInput
        If there are none of that name.
    """
    wide = 8 * BYTES[activation]
    known = {
        "float32": Elements("float32", 32, 0, "float32", "float32", 32),
        "float16": Elements("float16", 16, 0, activation, activation, wide),
        "bfloat16": Elements("bfloat16", 16, 0, "bfloat16", "bfloat16", 16),
        "int8": Elements("int8", 8, GROUP, activation, activation, wide),
        "int4": Elements("int4", 4, GROUP, activation, activation, wide),
        "w8a8": Elements("w8a8", 8, GROUP, "int8", activation, 8),
    }
    if name not in known:
        raise unknown("element type", name, known)
    return known[name]
