"""What modules of a network give for some samples, collected by hooks that are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput, unknown

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Pooling = Literal["mean", "flatten"]


def activations(
    model: nn.Module, paths: Sequence[str], inputs: Inputs, *, pooling: Pooling = "mean", batch_size: int = 256
) -> dict[str, Tensor]:
    """Return one vector a sample of each module, shape ``(samples, width)``, float32, on the CPU.

    The model runs in evaluation mode, without gradients, and is afterwards as it was: no hooks, each module in its
    mode, the generator of random numbers where it stood.

    Parameters
    ----------
    paths : sequence of str
        Of modules, as `nn.Module.get_submodule` takes them. Of a tuple or dataclass the first tensor is taken; of a
        module that runs more than once, what it gives last.
    inputs : Tensor, tuple of Tensor, or mapping of str to Tensor
        What the model is called with; samples along the first axis of each.
    pooling : {"mean", "flatten"}
        What becomes of further axes. ``mean``: over positions (the last two axes of ``(samples, channels, height,
        width)``, the middle ones otherwise), weighted by ``inputs["attention_mask"]`` where there is one of that
        shape. ``flatten``: all become columns.

    Raises
    ------
    BadInput
        If there is no module at a path, it does not run or gives no tensor with a row for each sample, or inputs
        differ in length.
    """
    if pooling not in ("mean", "flatten"):
        raise unknown("pooling", pooling, ("mean", "flatten"))
    samples = samples_of(inputs)
    with still(model), _watched(model, paths) as seen:
        parts: dict[str, list[Tensor]] = {path: [] for path in paths}
        for start in range(0, samples, batch_size):
            batch = _taken(inputs, slice(start, start + batch_size), _device(model))
            seen.clear()
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch)
            size = min(batch_size, samples - start)
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            for path in paths:
                parts[path].append(_rows(path, seen, size, mask, pooling))
    return {path: torch.cat(found) for path, found in parts.items()}


def samples_of(inputs: Inputs) -> int:
    """Return how many samples inputs hold.

    Raises
    ------
    BadInput
        If they hold no tensors, or of unlike length.
    """
    tensors = _tensors(inputs)
    lengths = {len(one) if isinstance(one, Tensor) and one.ndim else 0 for one in tensors}
    if len(lengths) != 1 or 0 in lengths:
        raise BadInput(f"inputs of lengths {sorted(lengths)}; give tensors with one row for each sample")
    return lengths.pop()


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Hold a model in evaluation mode without gradients; modes and random numbers are as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = [] if _device(model).type != "cuda" else [_device(model)]
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _watched(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    known = [name for name, _ in model.named_modules()]
    for path in paths:
        if path not in known:
            raise unknown("module", path, known[1:])
    seen: dict[str, Any] = {}
    handles = []
    try:
        for path in paths:

            def hook(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
                seen[path] = output

            handles.append(model.get_submodule(path).register_forward_hook(hook))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _rows(path: str, seen: Mapping[str, Any], samples: int, mask: Tensor | None, pooling: Pooling) -> Tensor:
    if path not in seen:
        raise BadInput(f"module {path!r} did not run on the inputs; name one that does")
    output = seen[path]
    while not isinstance(output, Tensor):
        values = list(output.values()) if isinstance(output, Mapping) else output
        output = values[0] if isinstance(values, list | tuple) and values else None
        if output is None:
            raise BadInput(f"module {path!r} gives no tensor; name one that does")
    if not output.ndim or len(output) != samples:
        shape = tuple(output.shape)
        raise BadInput(f"module {path!r} gives shape {shape} for {samples} samples; name one with a row for each")
    output = output.detach().float()
    if output.ndim > 2 and pooling == "mean":
        output = _mean(output, mask)
    return output.reshape(samples, -1).cpu()


def _mean(output: Tensor, mask: Tensor | None) -> Tensor:
    if output.ndim == 4:
        return output.mean((2, 3))
    if mask is not None and mask.shape == output.shape[:-1]:
        weights = mask.to(output.dtype)[..., None]
        return (output * weights).sum(1) / weights.sum(1).clamp(min=1)
    return output.mean(tuple(range(1, output.ndim - 1)))


def _tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):
        return (inputs,)
    return tuple(inputs.values()) if isinstance(inputs, Mapping) else tuple(inputs)


def _taken(inputs: Inputs, rows: slice, device: torch.device) -> tuple[Tensor, ...] | dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        return {name: one[rows].to(device) for name, one in inputs.items()}
    return tuple(one[rows].to(device) for one in _tensors(inputs))


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
