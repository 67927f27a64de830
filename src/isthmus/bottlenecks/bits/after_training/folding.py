"""Folding: levels of their own for each channel behind a norm become the same for all, and the network stays as it is.

Scale reparameterization (Li et al. 2023, RepQ-ViT, arXiv 2212.08254, equations 5 to 8): with a step and a zero for each
channel, ``s`` and ``z``, and their means, the norm's weight becomes ``weight / r``, its bias ``(bias + s * (z - mean
z)) / r`` with ``r = s / mean s``, and what reads it takes the reverse. Rounding all channels alike is then what
rounding each to its own levels was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from isthmus.bottlenecks.bits.after_training.levels import channel_levels
from isthmus.bottlenecks.bits.after_training.method import Job, runner
from isthmus.bottlenecks.bits.after_training.observing import Seen
from isthmus.network import Network
from isthmus.storage.rounding import Even

EXACT = 1e-4
"""How far, as a share of the largest output, a folded network may be from what it was before."""


def fold(model: nn.Module, norm: str, readers: Sequence[str], step: Tensor, zero: Tensor, bits: int) -> Even:
    """Fold the channels' levels into a norm and what reads it, in place; return the levels that all then share.

    Parameters
    ----------
    readers : sequence of str
        Paths of the linear maps that read the norm; nothing else may.
    step, zero : Tensor, shape ``(channels,)``
    """
    own = model.get_submodule(norm)
    assert isinstance(own, nn.LayerNorm)
    shared = Even(bits, float(step.mean()), int(zero.mean().round()))
    ratio, shift = step / shared.step, step * (zero - shared.zero)
    with torch.no_grad():
        own.weight.div_(ratio)
        own.bias.add_(shift).div_(ratio)
        for path in readers:
            reader = model.get_submodule(path)
            assert isinstance(reader, nn.Linear)
            reader.bias.sub_(reader.weight @ shift)
            reader.weight.mul_(ratio)
    return shared


def fold_where_exact(
    model: nn.Module,
    norm: str,
    readers: Sequence[str],
    step: Tensor,
    zero: Tensor,
    bits: int,
    run: Callable[[], Tensor],
) -> Even | None:
    """Fold, and take it back where the network then gives something else: its norm is read by more than ``readers``.

    Parameters
    ----------
    run : callable
        Runs the model on an example.

    Returns
    -------
    Even or None
        None where it was taken back.
    """
    own = model.get_submodule(norm)
    if (
        not isinstance(own, nn.LayerNorm)
        or own.bias is None
        or any(getattr(model.get_submodule(path), "bias", None) is None for path in readers)
    ):
        return None  # a bias that no config builds could not be saved
    touched = [own, *(model.get_submodule(path) for path in readers)]
    before = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in touched]
    with torch.no_grad():
        wanted = run()
        shared = fold(model, norm, readers, step, zero, bits)
        far = float((run() - wanted).abs().max()) > EXACT * float(wanted.abs().max())
    if far:
        for module, state in zip(touched, before, strict=True):
            module.load_state_dict(state)
        return None
    return shared


def folded(student: Network, seen: Seen, job: Job, *, dual: bool = False) -> dict[str, Even]:
    """Fold the channels' levels into every norm, in place, where that changes nothing; return those of its readers.

    Parameters
    ----------
    dual : bool
        Clip either end of a channel by itself.
    """
    known: dict[str, Even] = {}
    run = runner(student, job.examples)
    for norm, readers in seen.readers.items():
        if not readers:
            continue
        step, zero = channel_levels(seen.inputs[readers[0]], job.activations, dual=dual)
        shared = fold_where_exact(student.model, norm, readers, step, zero, job.activations, run)
        if shared is not None:
            known |= dict.fromkeys(readers, shared)
    return known
