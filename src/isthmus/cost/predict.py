"""Rates predicted from shapes: parameters, bytes and multiply-accumulates as functions of the kept units."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from isthmus.cost.measure import macs_by_module
from isthmus.cost.rates import Rate, Term, presence
from isthmus.sites.experts import mixtures
from isthmus.sites.site import common_module

if TYPE_CHECKING:
    import torch

    from isthmus.sites.site import Site

# How many units of every site stay, as indices. A site that is not named stays whole.
Kept = Mapping[str, Sequence[int]]


def kept_counts(sites: Iterable[Site], kept: Kept | None = None) -> dict[str, float]:
    """Return what a rate is evaluated on: the number of kept units by site, and the presence of each layer.

    Parameters
    ----------
    sites : iterable of Site
    kept : mapping of str to sequence of int, optional
        The units that stay, by site. Sites that are missing, or all of them where it is None, stay whole.

    Returns
    -------
    dict of str to float
        ``{site.name: count}``, with ``presence(i)`` of 1 or 0 for every layer ``i``.
    """
    kept = kept or {}
    counts: dict[str, float] = {}
    for site in sites:
        units = kept.get(site.name, range(site.units))
        counts[site.name] = float(len(units))
        if site.kind == "layers":
            staying = set(units)
            counts.update({presence(unit): float(unit in staying) for unit in range(site.units)})
    return counts


def parameter_rate(model: torch.nn.Module, sites: Sequence[Site]) -> Rate:
    """Return the number of parameters as a function of the kept units; exact.

    Shared parameters are counted once, as they are saved once.
    """
    names = dict(model.named_parameters())
    terms = [term for name, tensor in names.items() for term in _tensor_terms(name, tuple(tensor.shape), sites)]
    return Rate("params", _merge(terms))


def bytes_rate(model: torch.nn.Module, sites: Sequence[Site]) -> Rate:
    """Return the bytes of the saved tensors as a function of the kept units, without the files' headers."""
    terms = [
        Term(term.coefficient * tensor.element_size(), term.factors)
        for name, tensor in saved_tensors(model).items()
        for term in _tensor_terms(name, tuple(tensor.shape), sites)
    ]
    return Rate("bytes", _merge(terms))


def coded_bytes_rate(model: torch.nn.Module, sites: Sequence[Site], bits: Mapping[str, float]) -> Rate:
    """Return the bytes of the saved tensors as a function of the kept units, where matrices are coded.

    Parameters
    ----------
    bits : mapping of str to float
        What a weight of a coded matrix takes, all included, by name; other tensors are saved in float16.
    """
    terms = [
        Term(term.coefficient * bits.get(name, 16.0) / 8, term.factors)
        for name, tensor in saved_tensors(model).items()
        for term in _tensor_terms(name, tuple(tensor.shape), sites)
    ]
    return Rate("bytes", _merge(terms))


def macs_rate(
    model: torch.nn.Module,
    sites: Sequence[Site],
    length: int,
    inputs: Mapping[str, torch.Tensor] | None = None,
) -> Rate:
    """Return the multiply-accumulates of one sequence, or of one image, as a function of the kept units.

    The network is run once and counted module by module. A linear layer costs its weight's size times the number of
    rows that it saw (``length``, or 1 in a pooler), a convolution its weight's size times the positions that it
    computes. What else is multiplied in a layer, or around heads outside the layers, is attention, which grows with
    the heads; anything else that is multiplied is fixed.

    Parameters
    ----------
    model : torch.nn.Module
    sites : sequence of Site
    length : int
        Tokens of the sequence.
    inputs : mapping of str to Tensor, optional
        Keyword arguments of the network for one example, where the model alone does not say what they are.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    counted = macs_by_module(model, example_inputs(model, length) if inputs is None else inputs)
    places = {place: counted[place] for place in (*_layer_paths(sites), *_attention_places(sites)) if place in counted}
    rest = defaultdict(int, places)
    rest[""] = counted[""] - sum(rest.values())
    terms: list[Term] = []
    for mixture in mixtures(model):
        for path, name in ((mixture.router, "weight"), (mixture.experts, "down_proj")):
            terms += _routed_terms(model, path, name, counted.get(path, 0), sites)
            rest[next((place for place in places if path.startswith(f"{place}.")), "")] -= counted.get(path, 0)
    first = {id(tensor): name for name, tensor in model.named_parameters()}
    for name, module in model.named_modules():
        kinds = (torch.nn.Linear, Conv1D, torch.nn.modules.conv._ConvNd)
        if not isinstance(module, kinds) or not counted.get(name):
            continue
        rows = counted[name] / module.weight.numel()
        weight = first.get(id(module.weight), f"{name}.weight")  # of a tied one the name that sites know it by
        terms += [
            Term(term.coefficient * rows, term.factors)
            for term in _tensor_terms(weight, tuple(module.weight.shape), sites)
        ]
        rest[next((place for place in places if name.startswith(f"{place}.")), "")] -= counted[name]
    for place, macs in rest.items():
        terms += _attention_terms(place, macs, sites)
    return Rate("macs", _merge(terms))


def predicted_shapes(model: torch.nn.Module, sites: Sequence[Site], kept: Kept | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that the narrowed network saves, by their names in it.

    Layers that go are left out and those behind them move up.
    """
    counts = kept_counts(sites, kept)
    shapes: dict[str, tuple[int, ...]] = {}
    after = narrowed_names(saved_tensors(model), sites, kept)
    for name, tensor in saved_tensors(model).items():
        if name not in after:
            continue
        name_after = after[name]
        forms = _dimension_forms(name, tuple(tensor.shape), sites)
        shapes[name_after] = tuple(
            round(sum(size if site is None else size * counts[site] for size, site in form)) for form in forms
        )
    return shapes


def narrowed_names(names: Iterable[str], sites: Sequence[Site], kept: Kept | None) -> dict[str, str]:
    """Return what tensors are called in the narrowed network; those of layers that go are left out."""
    moved = _moved_layers(sites, kept or {})
    after: dict[str, str] = {}
    for name in names:
        path = _layer_of(name, sites)[0]
        target = moved[path] if path else ""
        if target is not None:
            after[name] = target + name[len(path) :]
    return after


def saved_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that saving writes: parameters and lasting buffers, each shared one once."""
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    parameters = dict(model.named_parameters())
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(parameters)
    return {
        name: parameters.get(name, tensor)
        for name, tensor in model.state_dict().items()
        if name not in shared and name not in ignored
    }


def example_inputs(model: torch.nn.Module, length: int, batch: int = 1) -> dict[str, torch.Tensor]:
    """Return inputs that a model accepts.

    Of text encoders (batch, length) token numbers that are not padding, and a mask; of models of images random ones of
    the size that the config names.
    """
    import torch

    from isthmus.sites.inputs import model_reads_images, random_images

    if model_reads_images(model):
        return random_images(model, batch)
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    token = 0 if padding is None else int(padding == 0)
    device = next(model.parameters()).device
    return {
        "input_ids": torch.full((batch, length), token, dtype=torch.long, device=device),
        "attention_mask": torch.ones((batch, length), dtype=torch.long, device=device),
    }


def _layer_paths(sites: Sequence[Site]) -> list[str]:
    return [f"{site.module}.{i}" for site in sites if site.kind == "layers" for i in range(site.units)]


def _attention_places(sites: Sequence[Site]) -> dict[str, Site]:
    """Return the heads that belong to no layer of the network's list, by the module that holds all of their tensors.

    Heads that all layers share belong to each of them, and to no place of their own.
    """
    heads = [site for site in sites if site.kind == "heads" and site.layer is None]
    layers = _layer_paths(sites)
    places = {}
    for site in heads:
        place = common_module(part.parameter for part in site.slices)
        if place and not any(layer == place or layer.startswith(f"{place}.") for layer in layers):
            places[place] = site
    return places


def _layer_of(name: str, sites: Sequence[Site]) -> tuple[str, int | None]:
    """Return the path and the number of the layer that a parameter lies in, or an empty path and None."""
    for site in sites:
        prefix = f"{site.module}."
        if site.kind == "layers" and name.startswith(prefix):
            index = name[len(prefix) :].partition(".")[0]
            return prefix + index, int(index)
    return "", None


def _moved_layers(sites: Sequence[Site], kept: Kept) -> dict[str, str | None]:
    """Return where each layer's path is after narrowing; None for one that goes."""
    moved: dict[str, str | None] = {}
    for site in sites:
        if site.kind == "layers":
            moved.update({f"{site.module}.{unit}": None for unit in range(site.units)})
            staying = sorted(kept.get(site.name, range(site.units)))
            moved.update({f"{site.module}.{unit}": f"{site.module}.{i}" for i, unit in enumerate(staying)})
    return moved


def _dimension_forms(name: str, shape: tuple[int, ...], sites: Sequence[Site]) -> list[list[tuple[float, str | None]]]:
    """Return each dimension as a sum of (entries per unit, site); what belongs to no site has the site None."""
    forms: list[list[tuple[float, str | None]]] = []
    for dim, size in enumerate(shape):
        form: list[tuple[float, str | None]] = []
        fixed = size
        for site in sites:
            for part in site.slices:
                if part.parameter == name and part.dim % len(shape) == dim:
                    form.append((part.each, site.name))
                    fixed -= part.each * site.units
        if fixed < 0:
            raise ValueError(f"the sites claim {size - fixed} entries of dimension {dim} of {name}, which has {size}")
        forms.append([*form, (fixed, None)] if fixed else form)
    return forms


def _tensor_terms(name: str, shape: tuple[int, ...], sites: Sequence[Site]) -> list[Term]:
    """Return the number of a tensor's entries as terms."""
    layer = _layer_of(name, sites)[1]
    present = () if layer is None else (presence(layer),)
    terms: list[Term] = []
    for choice in itertools.product(*_dimension_forms(name, shape, sites)):
        coefficient = 1.0
        for size, _ in choice:
            coefficient *= size
        terms.append(Term(coefficient, present + tuple(site for _, site in choice if site is not None)))
    return terms


def _routed_terms(model: torch.nn.Module, path: str, name: str, macs: float, sites: Sequence[Site]) -> list[Term]:
    """Return the terms of a router, which rates every expert, or of the experts, of which a token goes to as many as
    ever: these grow with all dimensions but that of experts."""
    shape = tuple(model.get_parameter(f"{path}.{name}").shape)
    skipped = len(shape) - 2
    forms = _dimension_forms(f"{path}.{name}", shape, sites)[skipped:]
    each = macs / math.prod(shape[skipped:])
    layer = _layer_of(path, sites)[1]
    present = () if layer is None else (presence(layer),)
    return [
        Term(
            each * math.prod(size for size, _ in choice),
            present + tuple(site for _, site in choice if site is not None),
        )
        for choice in itertools.product(*forms)
    ]


def _attention_terms(layer: str, macs: float, sites: Sequence[Site]) -> list[Term]:
    """Return the terms of what is multiplied in a place besides its linear layers and convolutions.

    In a layer, and around heads outside the layers, that is attention; anywhere else it is fixed.
    """
    if not macs:
        return []
    if not layer:
        return [Term(float(macs))]
    places = _attention_places(sites)
    if layer in places:
        return [Term(macs / places[layer].units, (places[layer].name,))]
    index = int(layer.rpartition(".")[2])
    # Heads that belong to no layer are shared by all of them.
    elsewhere = [site.name for site in places.values()]
    heads = [
        site for site in sites if site.kind == "heads" and site.layer in (index, None) and site.name not in elsewhere
    ]
    if not heads:
        return [Term(float(macs), (presence(index),))]
    total = sum(site.units for site in heads)
    return [Term(macs / total, (presence(index), site.name)) for site in heads]


def _merge(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Add up the coefficients of terms with the same factors, so that a rate is quick to evaluate."""
    merged: dict[tuple[str, ...], float] = defaultdict(float)
    for term in terms:
        merged[tuple(sorted(term.factors))] += term.coefficient
    return tuple(Term(coefficient, factors) for factors, coefficient in merged.items() if coefficient)
