"""Rounded activations: linear maps whose input vectors are rounded to a few bits.

Either each token's by itself: the levels of a vector are evenly spaced from its smallest to its largest entry
(asymmetric, dynamic and by token: Wu et al. 2023, arXiv 2301.12017, section 3). Or to `Even` levels that were set
beforehand, the same for all entries of all vectors. A product of such a vector with a matrix of integers is one of
integers, for an engine that has them; everywhere else it is computed in floating point, on the rounded numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LEAST_BITS, MOST_BITS = 2, 8


@dataclass(frozen=True)
class Even:
    """Evenly spaced levels, the same for all entries: ``step * (0, ..., 2 ** bits - 1, each less zero)``.

    Parameters
    ----------
    bits : int
    step : float
    zero : int
        Which level is 0.
    """

    bits: int
    step: float
    zero: int

    def __call__(self, values: Tensor) -> Tensor:
        """Return each entry's nearest level, in the shape of ``values``."""
        return self.step * (values / self.step).round().clamp(-self.zero, 2**self.bits - 1 - self.zero)

    def data(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"bits": self.bits, "step": self.step, "zero": self.zero}


def even_of(data: Any) -> Even | None:
    """Return the levels that `Even.data` gave, or None where these are none; nothing is believed unchecked."""
    if not isinstance(data, dict) or set(data) != {"bits", "step", "zero"}:
        return None
    bits, step, zero = data["bits"], data["step"], data["zero"]
    if type(bits) is not int or not LEAST_BITS <= bits <= MOST_BITS or type(zero) is not int:
        return None
    sound = isinstance(step, float) and math.isfinite(step) and step > 0 and 0 <= zero < 2**bits
    return Even(bits, step, zero) if sound else None


Rounding = int | Even
"""Bits, where each vector has levels of its own; or levels that were set beforehand."""


class Through(torch.autograd.Function):
    """Gives back its second argument, and hands the gradient to the first (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: object, exact: Tensor, rounded: Tensor) -> Tensor:
        """Return the rounded tensor."""
        return rounded

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient as that of the exact tensor."""
        return gradients[0], None


def round_vectors(vectors: Tensor, bits: int) -> Tensor:
    """Round each vector to ``2 ** bits`` levels between its smallest and its largest entry.

    Parameters
    ----------
    vectors : Tensor, shape ``(..., width)``
    bits : int

    Returns
    -------
    Tensor, shape ``(..., width)``
        Its derivative by ``vectors`` is one.
    """
    with torch.no_grad():
        exact = vectors.float()
        low = exact.amin(-1, keepdim=True)
        step = (exact.amax(-1, keepdim=True) - low) / (2**bits - 1)
        # A vector whose entries are all alike has no step, and is its own level.
        levels = ((exact - low) / step.clamp(min=torch.finfo(torch.float32).tiny)).round()
        rounded: Tensor = (low + levels * step).to(vectors.dtype)
    if not (torch.is_grad_enabled() and vectors.requires_grad):
        return rounded
    through: Tensor = Through.apply(vectors, rounded)  # type: ignore[no-untyped-call]
    return through


class RoundedLinear(nn.Linear):
    """A linear map whose input vectors are rounded.

    Parameters
    ----------
    held : nn.Linear
        Whose weight and bias it takes over.
    rounding : int or Even
        Levels that were set beforehand let no gradient through.
    """

    def __init__(self, held: nn.Linear, rounding: Rounding) -> None:
        super().__init__(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
        self.weight, self.bias = held.weight, held.bias
        self.rounding = rounding
        self.train(held.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the map of the rounded vectors, shape ``(..., out_features)``."""
        own = self.rounding
        vectors = own(input) if isinstance(own, Even) else round_vectors(input, own)
        return torch.nn.functional.linear(vectors, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return what is shown of it."""
        return f"{super().extra_repr()}, rounding={self.rounding}"


def round_inputs(model: nn.Module, roundings: Mapping[str, Rounding]) -> None:
    """Let rounded linear maps take the place of others, in place.

    Parameters
    ----------
    roundings : mapping of str to int or Even
        By path of the module.
    """
    for path, rounding in roundings.items():
        held = model.get_submodule(path)
        assert isinstance(held, nn.Linear)
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, RoundedLinear(held, rounding))


def rounded_inputs(model: nn.Module) -> dict[str, Rounding]:
    """Return how what enters each rounded linear map is rounded, by path."""
    return {path: module.rounding for path, module in model.named_modules() if isinstance(module, RoundedLinear)}
