"""Rounded activations: linear maps whose input vectors are rounded to a few bits, each token's by itself.

The levels of a vector are evenly spaced from its smallest to its largest entry (asymmetric, dynamic and by token: Wu et
al. 2023, arXiv 2301.12017, section 3). A product of such a vector with a matrix of integers is one of integers, for an
engine that has them; everywhere else it is computed in floating point, on the rounded numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LEAST_BITS, MOST_BITS = 2, 8


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
    bits : int
    """

    def __init__(self, held: nn.Linear, bits: int) -> None:
        super().__init__(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
        self.weight, self.bias = held.weight, held.bias
        self.input_bits = bits
        self.train(held.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the map of the rounded vectors, shape ``(..., out_features)``."""
        return torch.nn.functional.linear(round_vectors(input, self.input_bits), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Return what is shown of it."""
        return f"{super().extra_repr()}, input_bits={self.input_bits}"


def round_inputs(model: nn.Module, bits: Mapping[str, int]) -> None:
    """Let rounded linear maps take the place of others, in place.

    Parameters
    ----------
    bits : mapping of str to int
        By path of the module.
    """
    for path, count in bits.items():
        held = model.get_submodule(path)
        assert isinstance(held, nn.Linear)
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, RoundedLinear(held, count))


def rounded_inputs(model: nn.Module) -> dict[str, int]:
    """Return the bits of what enters each rounded linear map, by path."""
    return {path: module.input_bits for path, module in model.named_modules() if isinstance(module, RoundedLinear)}
