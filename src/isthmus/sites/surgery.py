"""Surgery: make a model physically narrower by taking units out of coupled tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from isthmus.errors import BadInput
from isthmus.sites.experts import suit_experts
from isthmus.sites.site import Site, Slice

Kept = Mapping[str, Sequence[int]]


def slice_index(part: Slice, units: int, keep: Sequence[int]) -> Tensor:
    """Return which entries along ``part.dim`` stay when the units in ``keep`` stay, rising, shape ``(entries,)``."""
    staying = np.zeros(units + 1, dtype=bool)  # the last is that of entries that belong to no unit
    staying[list(keep)] = True
    staying[units] = True
    return torch.from_numpy(np.flatnonzero(staying[part.owner_of(units)]))


def check_kept(sites: Sequence[Site], kept: Kept) -> None:
    """Refuse kept units that do not fit the sites.

    Raises
    ------
    BadInput
        If a site is unknown, an index is out of range or repeated, a fixed unit is missing or too few stay.
    """
    by_name = {site.name: site for site in sites}
    for name, keep in kept.items():
        if name not in by_name:
            raise BadInput(f"plan: unknown site {name!r}; this network has {', '.join(list(by_name)[:6])}, ...")
        site = by_name[name]
        if list(keep) != sorted(set(keep)) or (keep and not 0 <= keep[0] <= keep[-1] < site.units):
            raise BadInput(f"plan: site {name} keeps indices that are not rising from 0 to {site.units - 1}")
        if len(keep) < site.minimum:
            raise BadInput(f"plan: site {name} keeps {len(keep)} units; at least {site.minimum} must stay")
        if not set(site.fixed) <= set(keep):
            raise BadInput(f"plan: site {name} drops units that must stay, such as {min(set(site.fixed) - set(keep))}")


def narrow_model(model: nn.Module, sites: Sequence[Site], kept: Kept) -> nn.Module:
    """Return a physically narrower copy of a model.

    Parameters
    ----------
    model : nn.Module
    sites : sequence of Site
        The sites of ``model``.
    kept : mapping of str to sequence of int
        For each site that is narrowed, the rising indices of the units that stay.

    Returns
    -------
    nn.Module
        Of the same class, with smaller parameters; ``model`` is left as it was.

    Raises
    ------
    BadInput
        If ``kept`` does not fit the sites.
    """
    check_kept(sites, kept)
    parameters = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    smaller: dict[int, Tensor] = {}
    for name, tensor in _narrowed_tensors(parameters, sites, kept).items():
        smaller[id(parameters[name])] = tensor
    # Handing the narrowed tensors to deepcopy as if already copied avoids ever holding a full second model.
    memo: dict[int, Any] = dict(smaller)
    narrowed = copy.deepcopy(model, memo)
    for module in narrowed.modules():
        refresh(module)
        forget(module)
    for site in sites:
        if site.name in kept:
            _set_attributes(narrowed, site, kept[site.name])
    for site in sites:
        if site.kind == "layers" and site.name in kept:
            keep_layers(narrowed, site.module, kept[site.name])
        if site.kind == "vocabulary" and site.name in kept:
            _renumber_ids(narrowed, site, kept[site.name])
    suit_experts(narrowed)
    return narrowed


def _narrowed_tensors(tensors: Mapping[str, Tensor], sites: Sequence[Site], kept: Kept) -> dict[str, Tensor]:
    # Two sites may own parts of the same dimension, so what stays is told by the entries as they are now.
    staying: dict[tuple[str, int], Tensor] = {}
    for site in sites:
        keep = kept.get(site.name)
        if keep is None or len(keep) == site.units:
            continue
        for part in site.slices:
            key = (part.parameter, part.dim % tensors[part.parameter].dim())
            size = tensors[part.parameter].shape[part.dim]
            mask = torch.zeros(size, dtype=torch.bool)
            mask[slice_index(part, site.units, keep)] = True
            staying[key] = staying[key] & mask if key in staying else mask
    changed: dict[str, Tensor] = {}
    for (name, dim), mask in staying.items():
        tensor = changed.get(name, tensors[name]).detach()
        changed[name] = tensor.index_select(dim, mask.nonzero().reshape(-1).to(tensor.device))
    return {name: _like(tensors[name], tensor.contiguous()) for name, tensor in changed.items()}


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def refresh(module: nn.Module) -> None:
    """Make a module's size attributes agree with the shapes of its parameters.

    Groups of a convolution or a group norm leave as a whole, so how many are left follows from the shape.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm):
        if weight.dim() == 1:
            module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1:
            module.groups = weight.shape[0] // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups > 1:
            module.num_groups = weight.shape[0] // (module.num_channels // module.num_groups)
        module.num_channels = weight.shape[0]


def forget(module: nn.Module) -> None:
    """Empty a module's caches: dictionaries of what it once computed from its parameters."""
    for name, value in vars(module).items():
        cache = type(value) is dict and value and not name.startswith("_")
        if cache and all(isinstance(kept, Tensor) for kept in value.values()):
            setattr(module, name, {})


def _set_attributes(model: nn.Module, site: Site, keep: Sequence[int]) -> None:
    for attribute in site.attributes:
        counted = len(set(keep) & set(attribute.among)) if attribute.among else len(keep)
        setattr(model.get_submodule(attribute.module), attribute.name, counted * attribute.factor)


def keep_layers(model: nn.Module, path: str, keep: Sequence[int]) -> None:
    """Leave only some of the modules of the list or sequence at ``path``, in place."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layers = getattr(parent, name)
    staying = [layers[index] for index in keep]
    rest: Any = nn.Sequential(*staying) if isinstance(layers, nn.Sequential) else nn.ModuleList(staying)
    was = built_indices(layers) or range(len(layers))
    rest.built_indices = tuple(was[index] for index in keep)
    setattr(parent, name, rest)
    # A cache is kept by the number of the layer, and told how long it is by the first.
    for number, layer in enumerate(staying):
        for part in layer.modules():
            if type(getattr(part, "layer_idx", None)) is int:
                part.layer_idx = number


def built_indices(layers: nn.Module) -> tuple[int, ...] | None:
    """Return which of the layers that a config builds are left in a list that lost some; None where it lost none."""
    found: tuple[int, ...] | None = getattr(layers, "built_indices", None)
    return found


def _renumber_ids(model: nn.Module, site: Site, keep: Sequence[int]) -> None:
    """Let the config's token ids and the padding row follow the tokens to their new rows."""
    new = {old: position for position, old in enumerate(keep)}
    config: Any = model.config
    config.vocab_size = len(keep)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk"):
        old = getattr(config, f"{name}_token_id", None)
        if isinstance(old, int):
            setattr(config, f"{name}_token_id", new.get(old))
    for part in site.slices:
        table = model.get_submodule(part.parameter.rpartition(".")[0])
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            table.padding_idx = new.get(table.padding_idx)
