"""Narrowing as data: how a model differs from the one its config builds, and how to rebuild it before weights load.

A narrowed model has shapes that no config field can say (uneven heads and neurons). Its config therefore keeps the
shape it was built from, and ``quantization_config`` says what was taken away: ``layers`` that stay, the ``shapes`` of
narrowed parameters and the integer ``attributes`` of modules that follow them; the ``inputs`` of linear maps that are
rounded; and what narrows the ``tokens`` and the ``cache`` as it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from isthmus.errors import BadArtifact, UnsupportedNetwork, misfit
from isthmus.sites.experts import suit_experts
from isthmus.sites.surgery import built_indices, keep_layers, refresh
from isthmus.storage.holders import expect_coded
from isthmus.storage.parts import PARTS, apply_part, described_parts
from isthmus.storage.rounding import LEAST_BITS, MOST_BITS, Even, RoundedLinear, even_of, round_inputs, rounded_inputs

METHOD = "isthmus"
VERSION = 5
# 2: weights may be coded; 3: inputs may be rounded; 4: tokens may leave; 5: to levels set beforehand, a cache planned

# Attributes that say the shape of a parameter: they follow from it and are not written down.
_FROM_SHAPES: dict[type[nn.Module], set[str]] = {
    nn.Linear: {"in_features", "out_features"},
    Conv1D: {"nx", "nf"},
    nn.Embedding: {"num_embeddings", "embedding_dim"},
    nn.modules.conv._ConvNd: {"in_channels", "out_channels", "groups"},
    nn.modules.batchnorm._NormBase: {"num_features"},
    nn.GroupNorm: {"num_channels", "num_groups"},
}


def built(model: nn.Module) -> nn.Module:
    """Return the model that the config of ``model`` builds, on the meta device: shapes without weights."""
    with torch.device("meta"):
        skeleton: nn.Module = type(model)(copy.deepcopy(model.config))
    return skeleton


def describe_narrowing(
    model: nn.Module,
    layers: Mapping[str, Sequence[int]] | None = None,
    coded: Mapping[str, int] | None = None,
    skeleton: nn.Module | None = None,
) -> dict[str, Any] | None:
    """Describe how a narrowed transformers model differs from the one its config builds.

    Parameters
    ----------
    model : nn.Module
        A narrowed model; its config still has the shape it was built from.
    layers : mapping of str to sequence of int, optional
        For a module list that lost layers, which of the built layers stay. By default read from the layers' own
        index; needed only where layers have none and are not alike.
    coded : mapping of str to int, optional
        Bytes of the weights that are coded in the file, by name of the parameter.
    skeleton : nn.Module, optional
        The model before it was narrowed, for a module that no config builds; it is narrowed in place.

    Returns
    -------
    dict or None
        The ``quantization_config`` of the artifact; None where nothing was narrowed.

    Raises
    ------
    UnsupportedNetwork
        If the difference is not one of layers, shapes and integer attributes.
    """
    skeleton = built(model) if skeleton is None else skeleton
    # What needs nothing newer says so, and older releases open it.
    inputs, parts = rounded_inputs(model), described_parts(model)
    newest = any(isinstance(one, Even) for one in inputs.values()) or "attention" in parts or "cache" in parts
    version = 5 if newest else 4 if parts else 3 if inputs else 2 if coded else 1
    description: dict[str, Any] = {"quant_method": METHOD, "version": version, "layers": None}
    removed = _removed_layers(skeleton, model, dict(layers or {}))
    if removed is not None:
        description["layers"] = removed
        keep_layers(skeleton, removed["module"], removed["keep"])
    old, new = _tensors(skeleton), _tensors(model)
    if old.keys() != new.keys():
        name = min(old.keys() ^ new.keys())
        raise UnsupportedNetwork(f"network: parameter {name} is not where its config builds it; narrow by sites only")
    description["shapes"] = {
        name: list(tensor.shape) for name, tensor in new.items() if tensor.shape != old[name].shape
    }
    description["attributes"] = _changed_attributes(skeleton, model)
    if inputs:
        description["inputs"] = {
            path: one.data() if isinstance(one, Even) else one for path, one in sorted(inputs.items())
        }
    description.update(parts)
    if coded:
        description["coded"] = dict(coded)
    elif not any(description.get(part) for part in ("layers", "shapes", "attributes", "inputs", *PARTS)):
        return None
    try:
        apply_narrowing(skeleton, {**description, "layers": None, "coded": None}, type(skeleton).__name__)
    except BadArtifact as error:
        raise UnsupportedNetwork(f"network: cannot be described by its config; {error}") from None
    return description


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what is saved of a model: parameters, and buffers that last."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    saved = model.state_dict(keep_vars=True).keys()
    return {**tensors, **{name: buffer for name, buffer in model.named_buffers() if name in saved}}


def _removed_layers(skeleton: nn.Module, model: nn.Module, given: dict[str, Sequence[int]]) -> dict[str, Any] | None:
    modules = dict(model.named_modules())
    for path, whole in skeleton.named_modules():
        rest = modules.get(path)
        if not isinstance(whole, nn.ModuleList | nn.Sequential) or not isinstance(rest, nn.ModuleList | nn.Sequential):
            continue
        if len(whole) == len(rest):
            continue
        keep = list(given[path]) if path in given else _indices(rest)
        if keep is None:
            # What holds no parameters (how often a layer is dropped in training) makes no difference here.
            signatures = {
                str(
                    [(name, type(part)) for name, part in layer.named_modules() if list(part.parameters(recurse=False))]
                )
                for layer in whole
            }
            if len(signatures) > 1:
                raise UnsupportedNetwork(f"network: cannot tell which layers of {path} stay; give their indices")
            keep = list(range(len(rest)))
        return {"module": path, "keep": [int(index) for index in keep]}
    return None


def _indices(layers: nn.ModuleList | nn.Sequential) -> list[int] | None:
    """Return which of the built layers these are: as the list says, or by the index that layers carry."""
    if (built := built_indices(layers)) is not None:
        return list(built)
    found = []
    for layer in layers:
        indices = [value for part in layer.modules() if isinstance(value := getattr(part, "layer_idx", None), int)]
        if not indices:
            return None
        found.append(indices[0])
    return found if found == sorted(set(found)) else None


def _integers(module: nn.Module) -> dict[str, int]:
    stated = {name for kind, names in _FROM_SHAPES.items() if isinstance(module, kind) for name in names}
    stated.add("layer_idx")  # which follows from the layer's place
    return {name: value for name, value in vars(module).items() if type(value) is int and name not in stated}


def _changed_attributes(skeleton: nn.Module, model: nn.Module) -> dict[str, dict[str, int]]:
    modules = dict(model.named_modules())
    changed = {}
    for path, module in skeleton.named_modules():
        mine, theirs = _integers(module), _integers(modules[path])
        differing = {name: theirs[name] for name in mine if name in theirs and theirs[name] != mine[name]}
        if differing:
            changed[path] = differing
    return changed


def apply_narrowing(model: nn.Module, description: Mapping[str, Any], saved_as: str | None) -> None:
    """Narrow a freshly built model, in place and without weights, to the shapes that were saved.

    Nothing in ``description`` is believed before it is checked against the built model.

    Parameters
    ----------
    model : nn.Module
        As its config builds it, on the meta device.
    description : mapping
        What ``describe_narrowing`` returned.
    saved_as : str or None
        Name of the class that was saved. Where another class is being loaded (the base model of a classifier, or the
        reverse), names are matched with and without the base model's prefix.

    Raises
    ------
    BadArtifact
        If the description does not fit the model.
    """
    version = description.get("version")
    if type(version) is not int or version < 1:
        raise BadArtifact(f"config.json: quantization_config has version {version!r}; narrow the network again")
    if version > VERSION:
        raise BadArtifact(f"config.json: written by a newer isthmus (version {version}); upgrade isthmus")
    names = ("layers", "shapes", "attributes", "inputs", "coded", *PARTS)
    parts = {name: description.get(name) or {} for name in names}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise misfit(f"{name} is not a table")
    strict = saved_as == type(model).__name__
    prefix = str(getattr(model, "base_model_prefix", ""))
    if parts["layers"]:
        _check_and_keep_layers(model, parts["layers"], prefix)
    tensors = _tensors(model)
    touched: set[str] = set()
    for name, shape in parts["shapes"].items():
        found = _find(name, tensors, prefix)
        if found is not None:
            _check_shape(name, shape, tuple(tensors[found].shape))
            _resize(model, found, tuple(shape))
            touched.add(found)
        elif strict:
            raise misfit(f"there is no parameter {name}")
    if not strict:
        _narrow_unsaved(model, prefix, touched)
    _set_attributes(model, parts["attributes"], prefix, strict)
    _refresh(model)
    suit_experts(model)
    _round_inputs(model, parts["inputs"], prefix, strict)
    modules = dict(model.named_modules())
    for name in PARTS:
        if parts[name]:
            apply_part(model, name, parts[name], lambda path: _find(path, modules, prefix))
    if parts["coded"]:
        known = _tensors(model)
        expect_coded(model, parts["coded"], lambda name: _find(name, known, prefix))


def _find(name: str, known: Mapping[str, Any], prefix: str) -> str | None:
    """Find a saved name in this model, as it is, without or with the base model's prefix."""
    candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((candidate for candidate in candidates if candidate in known), None)


def _check_and_keep_layers(model: nn.Module, layers: Mapping[str, Any], prefix: str) -> None:
    path, keep = layers.get("module"), layers.get("keep")
    modules = dict(model.named_modules())
    found = _find(path, modules, prefix) if isinstance(path, str) else None
    whole = modules[found] if found else None
    if found is None or not isinstance(whole, nn.ModuleList | nn.Sequential):
        raise misfit(f"{path!r} is not a list of layers")
    rising = isinstance(keep, list) and all(type(index) is int for index in keep) and keep == sorted(set(keep))
    if not isinstance(keep, list) or not rising or not keep or not 0 <= keep[0] <= keep[-1] < len(whole):
        raise misfit(f"layers to keep must be rising indices from 0 to {len(whole) - 1}")
    keep_layers(model, found, keep)


def _check_shape(name: str, shape: Any, largest: tuple[int, ...]) -> None:
    fits = (
        isinstance(shape, list)
        and len(shape) == len(largest)
        and all(type(size) is int and 0 < size <= limit for size, limit in zip(shape, largest, strict=True))
    )
    if not fits:
        raise misfit(f"{name} of shape {shape} is not within {list(largest)}")


def _resize(model: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = getattr(module, own)
    smaller = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
    whole = isinstance(tensor, nn.Parameter)
    setattr(module, own, nn.Parameter(smaller, requires_grad=tensor.requires_grad) if whole else smaller)


def _narrow_unsaved(model: nn.Module, prefix: str, touched: set[str]) -> None:
    """Let projections and norms that were not saved (a pooler, a new head) read the narrowed stream that feeds them.

    All that was saved and reads the stream is in ``touched``; the rest was built for the full width.
    """
    base = getattr(model, prefix, model) if prefix else model
    norms = [module for module in base.modules() if isinstance(module, nn.LayerNorm) and module.weight is not None]
    config: Any = model.config
    stated = getattr(config.get_text_config(), "hidden_size", None)
    if not isinstance(stated, int):  # a network of several widths, a stage each
        return
    full = stated
    width = int(norms[-1].weight.shape[0]) if norms else full
    if width == full:
        return
    known = {name.rpartition(".")[0] for name in touched}
    for path, module in model.named_modules():
        if path in known or not isinstance(module, nn.Linear | nn.LayerNorm):
            continue
        for own, parameter in list(module.named_parameters(recurse=False)):
            if full in parameter.shape:
                shape = tuple(width if size == full else size for size in parameter.shape)
                _resize(model, f"{path}.{own}", shape)


def _set_attributes(model: nn.Module, attributes: Mapping[str, Any], prefix: str, strict: bool) -> None:
    modules = dict(model.named_modules())
    for path, found, values in _modules_named(attributes, modules, prefix, strict):
        known = _integers(modules[found])
        for name, value in values.items() if isinstance(values, dict) else [(path, None)]:
            if name not in known or type(value) is not int or not 0 <= value <= known[name]:
                raise misfit(f"attribute {name} of {path} cannot be {value!r}")
            setattr(modules[found], name, value)


def _modules_named(
    table: Mapping[str, Any], modules: Mapping[str, nn.Module], prefix: str, strict: bool
) -> Iterator[tuple[str, str, Any]]:
    """Yield saved path, path in this model and value of each entry; where not strict, some may be absent."""
    for path, value in table.items():
        found = _find(path, modules, prefix)
        if found is not None:
            yield path, found, value
        elif strict:
            raise misfit(f"there is no module {path}")


def _round_inputs(model: nn.Module, inputs: Mapping[str, Any], prefix: str, strict: bool) -> None:
    modules = dict(model.named_modules())
    for path, found, rounding in _modules_named(inputs, modules, prefix, strict):
        if type(modules[found]) not in (nn.Linear, RoundedLinear):
            raise misfit(f"{path} is not a linear map")
        own = even_of(rounding) if isinstance(rounding, dict) else rounding
        if own is None or (not isinstance(own, Even) and (type(own) is not int or not LEAST_BITS <= own <= MOST_BITS)):
            raise misfit(f"inputs of {path} of {rounding!r} bits")
        round_inputs(model, {found: own})


def _refresh(model: nn.Module) -> None:
    """Make the sizes that modules state agree with their parameters, and check that these agree with one another."""
    for path, module in model.named_modules():
        _check_groups(path, module)
        refresh(module)
        for tensor in _rows(module):
            if tensor.shape != module.weight.shape[:1]:
                raise misfit(f"bias and weight of {path} have {tensor.shape[0]} and {module.weight.shape[0]} rows")


def _check_groups(path: str, module: nn.Module) -> None:
    """Check that whole groups of a convolution or a group norm are left."""
    if isinstance(module, nn.modules.conv._ConvNd):
        groups, channels = module.groups, module.out_channels
    elif isinstance(module, nn.GroupNorm):
        groups, channels = module.num_groups, module.num_channels
    else:
        return
    if groups > 1 and module.weight is not None and module.weight.shape[0] % (channels // groups):
        raise misfit(f"{path} has {module.weight.shape[0]} channels in groups of {channels // groups}")


def _rows(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors that have as many entries as a module's weight has rows."""
    kinds = (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
    if isinstance(module, kinds) and getattr(module, "weight", None) is not None:
        for name in ("bias", "running_mean", "running_var"):
            if isinstance(tensor := getattr(module, name, None), torch.Tensor):
                yield tensor
