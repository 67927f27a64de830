"""Norms by the root of the mean square: which modules are such norms, and what they give over open units only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILONS = ("variance_epsilon", "eps", "epsilon")


def rms_epsilon(module: nn.Module) -> float | None:
    """Return what a root-mean-square norm adds to the mean square; None for any other module.

    Such norms have a class of their own in every family, so a module is told by what it computes: ``v · x /
    sqrt(mean(x²) + ε)`` over the last dimension, with one ``v`` for all ``x``.
    """
    epsilon = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
    parameters = list(module.named_parameters())
    if not isinstance(epsilon, float) or [name for name, _ in parameters] != ["weight"] or parameters[0][1].dim() != 1:
        return None
    weight = parameters[0][1]
    rows = torch.randn((2, len(weight)), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with torch.no_grad():
            found = module(rows)
        ratio = found * torch.sqrt(rows.square().mean(-1, keepdim=True) + epsilon) / rows
    except Exception:  # a module that takes anything else is no norm
        return None
    alike = ratio.shape == rows.shape and torch.allclose(ratio[0], ratio[1], rtol=1e-3, atol=1e-3)
    return epsilon if alike else None


def gated_rms_norm(stream: Tensor, normed: Tensor, gate: Tensor, epsilon: float) -> Tensor:
    """Return what a root-mean-square norm gives where it takes the mean over open units only.

    The mean is weighted by the gate, so that a gate of zeros and ones gives exactly what a narrower norm gives on the
    units that stay, and zeros elsewhere. What the norm multiplies by is its own affair: the ratio of the two means
    is enough.

    Parameters
    ----------
    stream, normed : Tensor, shape ``(..., width)``
        What entered the norm and what left it.
    gate : Tensor, shape ``(width,)``, from 0 (closed) to 1 (open)
    epsilon : float
        As `rms_epsilon` returns it.
    """
    weight = gate.clamp(0, 1)
    square = stream.float().square()
    whole = square.mean(-1, keepdim=True)
    kept = (square * weight).sum(-1, keepdim=True) / weight.sum().clamp(min=1e-6)
    return (normed * torch.sqrt((whole + epsilon) / (kept + epsilon)) * gate).to(normed.dtype)
