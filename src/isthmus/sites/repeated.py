"""Repeated layers: the chain of like layers that holds most of a network, each of which can be passed by."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from isthmus.sites.seen import Trace
from isthmus.sites.site import Gate, Site

LAYERS = "layers"


def repeated_layers(model: nn.Module, found: Trace) -> Site | None:
    """Return the site of a network's layers.

    It is a module list (or a sequence) of modules of one class, each called once, each entered by what the one before
    returned and returning the same shape. A network with several such chains, a stage each, has none that holds most
    of its parameters and so no layers that could be counted as one site. What a language model looks its words up in is
    not counted: in a small one it may be most of all.
    """
    kinds = getattr(getattr(model, "config", None), "layer_types", None)
    if kinds and len(set(kinds)) > 1:  # the network's code looks up by a layer's place of which kind it is
        return None
    words = _word_tables(model)
    total = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in words)
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        alike = len({type(layer) for layer in module}) == 1
        if (
            alike
            and path
            and 2 * size > total
            and _is_chain([f"{path}.{index}" for index in range(len(module))], found)
        ):
            return Site(LAYERS, "layers", len(module), gates=(Gate(path, "skip"),), module=path)
    return None


def _word_tables(model: nn.Module) -> set[int]:
    """Return the identities of the parameters by which a language model reads and writes words."""
    writing = getattr(model, "get_output_embeddings", lambda: None)()
    if writing is None:
        return set()
    reading: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    return {id(parameter) for table in (reading, writing) for parameter in table.parameters()}


def _is_chain(paths: list[str], found: Trace) -> bool:
    calls = [found.calls.get(path, []) for path in paths]
    if any(len(call) != 1 for call in calls):
        return False
    shapes = {value.shape if value is not None else () for (call,) in calls for value in (call.entered, call.left)}
    ends = [found.chains[path][0] for path in paths if found.chains.get(path)]
    if len(shapes) > 1 or len(ends) != len(paths):
        return False
    return all(before[1] == after[0] for before, after in pairwise(ends))
