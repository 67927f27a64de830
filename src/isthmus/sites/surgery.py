"""Surgery: make a model physically narrower by taking units out of coupled tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.sites.site import Site, Slice

Kept = Mapping[str, Sequence[int]]


def slice_index(part: Slice, units: int, keep: Sequence[int]) -> Tensor:
    """Return which entries along ``part.dim`` stay when the units in ``keep`` stay, shape ``(entries,)``."""
    kept = torch.as_tensor(list(keep), dtype=torch.long)
    within = (kept[:, None] * part.block + torch.arange(part.block)[None, :]).reshape(-1)
    offsets = torch.arange(part.repeat) * units * part.block
    return (offsets[:, None] + within[None, :]).reshape(-1)


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
    parameters = dict(model.named_parameters())
    smaller: dict[int, Tensor] = {}
    for name, parameter in _narrowed_parameters(parameters, sites, kept).items():
        smaller[id(parameters[name])] = parameter
    # Handing the narrowed tensors to deepcopy as if already copied avoids ever holding a full second model.
    memo: dict[int, Any] = dict(smaller)
    narrowed = copy.deepcopy(model, memo)
    for module in narrowed.modules():
        refresh(module)
    for site in sites:
        if site.name in kept:
            _set_attributes(narrowed, site, kept[site.name])
    for site in sites:
        if site.kind == "layers" and site.name in kept:
            _keep_layers(narrowed, site, kept[site.name])
        if site.kind == "vocabulary" and site.name in kept:
            _renumber_ids(narrowed, site, kept[site.name])
    return narrowed


def _narrowed_parameters(parameters: Mapping[str, Tensor], sites: Sequence[Site], kept: Kept) -> dict[str, Tensor]:
    changed: dict[str, Tensor] = {}
    for site in sites:
        keep = kept.get(site.name)
        if keep is None or len(keep) == site.units:
            continue
        for part in site.slices:
            tensor = changed.get(part.parameter, parameters[part.parameter]).detach()
            changed[part.parameter] = tensor.index_select(part.dim, slice_index(part, site.units, keep))
    return {
        name: nn.Parameter(tensor.contiguous(), requires_grad=parameters[name].requires_grad)
        for name, tensor in changed.items()
    }


def refresh(module: nn.Module) -> None:
    """Make a module's size attributes agree with the shapes of its parameters."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _set_attributes(model: nn.Module, site: Site, keep: Sequence[int]) -> None:
    for attribute in site.attributes:
        setattr(model.get_submodule(attribute.module), attribute.name, len(keep) * attribute.factor)


def _keep_layers(model: nn.Module, site: Site, keep: Sequence[int]) -> None:
    parent_path, _, name = site.module.rpartition(".")
    parent = model.get_submodule(parent_path)
    layers = getattr(parent, name)
    setattr(parent, name, nn.ModuleList([layers[index] for index in keep]))


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
