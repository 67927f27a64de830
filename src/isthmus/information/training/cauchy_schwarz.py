"""The Cauchy-Schwarz divergence from samples, and the information bottleneck built on it.

``D(p; q) = -log (int p q)^2 / (int p^2 int q^2)``; each integral is a mean of a Gaussian kernel over pairs of samples,
so that nothing is variational and all of it can be trained through. Yu et al. 2024 (arXiv 2404.17951).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.errors import BadInput

_TINY = 1e-30


def kernel_width(samples: Tensor) -> float:
    """Return the median distance between samples, shape ``(samples, width)``: a kernel's width where none is given.

    Raises
    ------
    BadInput
        If there are fewer than two samples or all are alike.
    """
    _check(samples)
    distances = torch.pdist(samples.detach().flatten(1).double())
    typical = float(distances.median()) or float(distances.mean())
    if not typical > 0:
        raise BadInput("Cauchy-Schwarz: all samples are alike; give a kernel's width")
    return typical


def gram(first: Tensor, second: Tensor, width: float) -> Tensor:
    """Return ``exp(-|x - y|^2 / (2 width^2))`` for all pairs, shape ``(first, second)``.

    Raises
    ------
    BadInput
        If the width is not above zero.
    """
    if not width > 0:
        raise BadInput(f"Cauchy-Schwarz: a kernel of width {width:g}; give a number above 0")
    one, other = first.flatten(1), second.flatten(1)
    squares = one.square().sum(1)[:, None] + other.square().sum(1) - 2 * one @ other.T
    return (-squares.clamp(min=0) / (2 * width**2)).exp()


def divergence(first: Tensor, second: Tensor, *, width: float | None = None) -> Tensor:
    """Return the Cauchy-Schwarz divergence of two samples, in nats, from zero (scalar).

    It is that of the samples' densities smoothed by a Gaussian of ``width / sqrt(2)``.

    Parameters
    ----------
    first, second : Tensor, shape ``(samples, width)``
        As many of each as there are; of the same width.
    width : float, optional
        Of the kernel; by default the median distance among all samples.

    Raises
    ------
    BadInput
        If there are too few samples, their widths differ, or the kernel's width is not above 0.
    """
    _check(first)
    _check(second)
    if first.shape[1:] != second.shape[1:]:
        raise BadInput(
            f"Cauchy-Schwarz: samples of shapes {tuple(first.shape)} and {tuple(second.shape)}; give one width"
        )
    size = kernel_width(torch.cat([first, second])) if width is None else width
    own, others, cross = gram(first, first, size), gram(second, second, size), gram(first, second, size)
    return _log(own.mean()) + _log(others.mean()) - 2 * _log(cross.mean())


def mutual_information(
    first: Tensor, second: Tensor, *, widths: tuple[float | None, float | None] = (None, None)
) -> Tensor:
    """Return the Cauchy-Schwarz divergence of joint from independent samples, in nats (scalar).

    Yu et al. 2024, proposition 2: with Gram matrices ``K`` and ``L``, ``log(sum K L / n^2) + log(sum K sum L / n^4) -
    2 log(sum_i (sum_j K_ij) (sum_j L_ij) / n^3)``. Zero for independent samples, and not on the scale of Shannon's.

    Parameters
    ----------
    first, second : Tensor, shape ``(samples, width)``
        Row by row drawn together.
    widths : pair of float or None
        Of the kernels; by default the median distances.

    Raises
    ------
    BadInput
        If there are too few samples, or not as many of both.
    """
    _check(first)
    _check(second)
    if len(first) != len(second):
        raise BadInput(f"Cauchy-Schwarz: {len(first)} samples beside {len(second)}; give as many of both")
    sizes = [kernel_width(one) if size is None else size for one, size in zip((first, second), widths, strict=True)]
    one, other = gram(first, first, sizes[0]), gram(second, second, sizes[1])
    return gram_information(one, other)


def gram_information(first: Tensor, second: Tensor) -> Tensor:
    """Return what two Gram matrices of the same samples share, in nats (scalar); see `mutual_information`."""
    together, apart = (first * second).mean(), first.mean() * second.mean()
    return _log(together) + _log(apart) - 2 * _log((first.mean(1) * second.mean(1)).mean())


def conditional_divergence(
    inputs: Tensor, targets: Tensor, predictions: Tensor, *, widths: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Return the Cauchy-Schwarz divergence of targets from predictions, given the inputs, in nats (scalar).

    Yu et al. 2024, proposition 1; the loss that takes the place of the squared error in regression.

    Parameters
    ----------
    inputs : Tensor, shape ``(samples, features)``
        Standardised, as targets, where widths are left at 1.
    targets, predictions : Tensor, shape ``(samples, outputs)``
    widths : pair of float
        Of the kernels of inputs and of outputs. "Given the inputs" means: among inputs within the kernel's width; one
        as wide as the median distance compares how targets and predictions are spread, and no longer which is where.

    Raises
    ------
    BadInput
        If there are too few samples, or not as many of all.
    """
    for one in (inputs, targets, predictions):
        _check(one)
    if len({len(inputs), len(targets), len(predictions)}) > 1 or targets.shape != predictions.shape:
        raise BadInput(
            "Cauchy-Schwarz: inputs, targets and predictions are not of one length; give one of each a sample"
        )
    outer, inner = widths
    near = gram(inputs, inputs, outer)
    weights = near / near.sum(1, keepdim=True).square()
    own, others, cross = (
        (weights * gram(one, other, inner)).sum()
        for one, other in ((targets, targets), (predictions, predictions), (predictions, targets))
    )
    return _log(own) + _log(others) - 2 * _log(cross)


@dataclass(frozen=True)
class CauchySchwarzBottleneck:
    """The objective: predict well, and let little of the input through.

    Parameters
    ----------
    beta : float
        Weight of what passes.
    widths : tuple of (float, float, float or None)
        Of the kernels of inputs and outputs, which are to be standardised where these are left at 1, and of codes, by
        default the median distance in each batch.
    """

    beta: float = 1e-2
    widths: tuple[float, float, float | None] = (1.0, 1.0, None)

    def __call__(self, inputs: Tensor, codes: Tensor, targets: Tensor, predictions: Tensor) -> Tensor:
        """Return the loss (scalar): the conditional divergence plus ``beta`` times what codes share with inputs."""
        of_inputs, of_outputs, of_codes = self.widths
        if of_codes is None:
            # Codes that are all alike let nothing through, whatever the kernel.
            of_codes = kernel_width(codes) if bool((codes != codes[:1]).any()) else 1.0
        lost = conditional_divergence(inputs, targets, predictions, widths=(of_inputs, of_outputs))
        return lost + self.beta * mutual_information(inputs, codes, widths=(of_inputs, of_codes))


def _log(value: Tensor) -> Tensor:
    return value.clamp(min=_TINY).log()


def _check(samples: Tensor) -> None:
    if samples.ndim < 2 or len(samples) < 2:
        raise BadInput(f"Cauchy-Schwarz: samples of shape {tuple(samples.shape)}; give (samples, width), two or more")
