"""Batch norms after a cut: their means and variances are those of the narrowed network's own maps, without training.

What enters a batch norm changes with the channels that went before it, while its running statistics are still the
original's. They are estimated anew in one pass over calibration images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

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
