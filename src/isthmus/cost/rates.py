"""Rates: what a network costs as a function of how many units of every site stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Count = TypeVar("Count")


def presence(layer: int) -> str:
    """Return the name under which a layer's presence (1 kept, 0 removed) enters a rate."""
    return f"layer:{layer}"


@dataclass(frozen=True)
class Term:
    """A coefficient times the kept counts of the named sites (or the presence of a layer)."""

    coefficient: float
    factors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rate:
    """A currency's cost: a sum of terms, each a product of kept counts.

    Calling it with floats gives a float; with tensors, a tensor through which gradients flow, so that the same
    expression serves the solver and the training of gates.
    """

    currency: str
    terms: tuple[Term, ...]

    def __call__(self, kept: Mapping[str, Count]) -> Count:
        total = 0.0
        for term in self.terms:
            value = term.coefficient
            for factor in term.factors:
                value = value * kept[factor]  # type: ignore[operator]
            total = total + value
        return total  # type: ignore[return-value]


def rescale(rate: Rate, factor: float) -> Rate:
    """Return a rate that is ``factor`` times as high everywhere, such as measured over predicted."""
    return Rate(rate.currency, tuple(Term(term.coefficient * factor, term.factors) for term in rate.terms))
