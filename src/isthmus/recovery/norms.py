"""Batch norms after a cut: their means and variances are those of the narrowed network's own maps, without training.

What enters a batch norm changes with the channels that went before it, while its running statistics are still the
original's. They are estimated anew in one pass over calibration images.

The original's own running statistics may be far from those of the images at hand (which are not augmented, or come from
elsewhere): estimated anew on images that were stored lossily, a ResNet-56 of CIFAR-10 moves by 0.44 nats with nothing
cut. So the original is restated first: statistics of these images, with scales and shifts that leave what it computes
as it was. What is estimated after a cut is then the change that the cut made, and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.examples import Example
from isthmus.network import Network, encode, outputs
from isthmus.progress import Progress, silent

BATCH = 128
"""Images that are normalized together; statistics are means over such batches."""


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms that keep running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kind) and module.track_running_stats]


def estimate_norms(network: Network, examples: Sequence[Example], *, progress: Progress = silent) -> bool:
    """Estimate the running mean and variance of every batch norm anew, in place.

    Every batch is normalized by its own mean and variance on its way, as in training, and a norm's running statistics
    become the means over batches; all else of the model computes as it does in use.

    Parameters
    ----------
    examples : sequence of Image or str
        Calibration examples; batches of a single one are left out, for it has no variance.

    Returns
    -------
    bool
        Whether there was anything to estimate, and examples to do it on.
    """
    norms = batch_norms(network.model)
    starts = [start for start in range(0, len(examples), BATCH) if len(examples) - start > 1]
    if not norms or not starts:
        return False
    before = [(norm.momentum, norm.training, int(norm.num_batches_tracked or 0)) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            # Without a momentum a norm keeps the mean over all batches since its reset.
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for number, start in enumerate(starts):
                outputs(network, encode(network, examples[start : start + BATCH]))
                progress("norms", number + 1, len(starts))
    finally:
        for norm, (momentum, training, tracked) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.fill_(tracked)
    return True


def restate_norms(network: Network, examples: Sequence[Example], *, progress: Progress = silent) -> bool:
    """Give every batch norm the running statistics of these examples, and a scale and shift that undo it, in place.

    Parameters
    ----------
    examples : sequence of Image or str
        Calibration examples.

    Returns
    -------
    bool
        Whether there was anything to restate. The network computes what it did, but for rounding.
    """
    norms = [norm for norm in batch_norms(network.model) if norm.affine]
    if not norms or not examples:
        return False
    sums = {norm: _Sums() for norm in norms}
    handles = [norm.register_forward_pre_hook(sums[norm].add) for norm in norms]
    try:
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                outputs(network, encode(network, examples[start : start + BATCH]))
                progress("norms", start // BATCH + 1, -(-len(examples) // BATCH))
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for norm, found in sums.items():
            if found.count > 1:
                _restate(norm, *found.moments())
    return True


class _Sums:
    """Adds up what enters a batch norm."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0

    def add(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        values = args[0].detach().double()
        others = [dim for dim in range(values.dim()) if dim != 1]
        self.count += values.numel() // values.shape[1]
        self.first = self.first + values.sum(others)
        self.second = self.second + values.square().sum(others)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of each channel."""
        mean = torch.as_tensor(self.first) / self.count
        variance = (torch.as_tensor(self.second) / self.count - mean.square()).clamp(min=0)
        return mean, variance * self.count / (self.count - 1)


def _restate(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    held: Any = norm
    before = (held.running_var.double() + held.eps).sqrt()
    scale = held.weight.double() * (variance + held.eps).sqrt() / before
    shift = held.bias.double() + held.weight.double() * (mean - held.running_mean.double()) / before
    for tensor, value in ((held.weight, scale), (held.bias, shift), (held.running_mean, mean)):
        tensor.copy_(value)
    held.running_var.copy_(variance)
