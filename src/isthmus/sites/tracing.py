"""Tracing: run a network once and follow which entries of its tensors belong together.

Every operator that runs is seen, whatever the network's code looks like, so that no graph has to be captured. An
operator that is not known fixes what enters it; the module it runs in is named, and the rest can still be narrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.sites.labels import Ties, Value
from isthmus.sites.norms import rms_epsilon
from isthmus.sites.passing import Follow
from isthmus.sites.seen import Call, Trace
from isthmus.sites.surgery import forget


def trace(model: nn.Module, inputs: Mapping[str, Tensor]) -> Trace:
    """Run a model once and return what was seen.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : mapping of str to Tensor
        Keyword arguments; one example is enough.
    """
    for module in model.modules():
        forget(module)  # what was computed from parameters before would not be seen to come from them
    ties = Ties()
    found = Trace(ties)
    mode = Follow(found, frozenset(path for path, part in model.named_modules() if rms_epsilon(part) is not None))
    # A buffer that is not saved is built anew at its full size.
    saved = model.state_dict().keys()
    kernels = {f"{path}.weight" for path, one in model.named_modules() if isinstance(one, nn.modules.conv._ConvNd)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and name in saved:
            found.tensors[name] = mode.values[tensor] = _labelled(ties, tensor, 2 if name in kernels else tensor.dim())
            mode.names[id(tensor)] = name
    found.shared.update(_shared(model))
    handles = _follow_modules(model, mode)
    try:
        with torch.no_grad(), mode:
            output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, tensor in named_outputs(output):
        if tensor in mode.values:
            makers = tuple(path for path, made in mode.made if made is tensor)
            found.results[name] = (mode.values[tensor], makers)
    return found


def _shared(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {first: (first, *others) for first, *others in names.values() if others}


def _labelled(ties: Ties, tensor: Tensor, dims: int) -> Value:
    """Return labels of a tensor of their own for each of its first dimensions."""
    factors: list[Tensor] = []
    for dim, size in enumerate(tensor.shape[:dims]):
        if size > 1:
            shape = [1] * tensor.dim()
            shape[dim] = size
            factors.append(ties.fresh(size).reshape(shape))
    return Value(tuple(tensor.shape), tuple(factors))


def named_outputs(output: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors of an output; one that has no name is called ``output``."""
    if isinstance(output, Tensor):
        return [("output", output)]
    if isinstance(output, Mapping):
        return [(str(name), value) for name, value in output.items() if isinstance(value, Tensor)]
    if isinstance(output, list | tuple):
        return [(f"output.{index}", value) for index, value in enumerate(output) if isinstance(value, Tensor)]
    return []


def _follow_modules(model: nn.Module, mode: Follow) -> list[Any]:
    """Keep track of the module that runs, and of what enters and leaves it."""
    handles: list[Any] = []

    def entering(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else kwargs.get("hidden_states")
            mode.stack.append((path, first if isinstance(first, Tensor) else None, mode.value(first)))

        return hook

    def leaving(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            _path, first, labels = mode.stack.pop()
            result = output[0] if isinstance(output, tuple) and output else output
            mode.trace.calls.setdefault(path, []).append(Call(labels, mode.value(result)))
            if isinstance(result, Tensor):
                # Held so that no later tensor can take its identity.
                mode.held += [result] if first is None else [result, first]
                mode.trace.chains.setdefault(path, []).append((id(first), id(result)))
                mode.made.append((path, result))

        return hook

    for name, part in model.named_modules():
        handles.append(part.register_forward_pre_hook(entering(name), with_kwargs=True))
        handles.append(part.register_forward_hook(leaving(name)))
    return handles
