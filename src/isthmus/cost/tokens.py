"""What tokens cost: multiply-accumulates of the layers as a function of how many tokens enter each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from isthmus.cost.measure import macs_by_module
from isthmus.cost.rates import Rate, Term
from isthmus.sites.site import Site


def token_macs(model: torch.nn.Module, layers: str, inputs: Mapping[str, Tensor], total: int) -> list[tuple[int, int]]:
    """Return what a token costs in each layer, and what a pair of tokens does, shape ``(layers, 2)``.

    A layer multiplies ``a n + b n^2`` for ``n`` tokens: ``a`` in its linear maps, ``b`` in attention, whose heads
    together are ``b / 2`` wide.

    Parameters
    ----------
    layers : str
        The path of the list of layers.
    inputs : mapping of str to Tensor
        Of one example, of ``total`` tokens.
    total : int
    """
    counted = macs_by_module(model, inputs)
    found = []
    for index, _ in enumerate(model.get_submodule(layers).children()):
        path = f"{layers}.{index}"
        linear = sum(
            counted.get(f"{path}.{name}", 0)
            for name, module in model.get_submodule(path).named_modules()
            if isinstance(module, torch.nn.Linear)
        )
        found.append((linear // total, (counted.get(path, 0) - linear) // total**2))
    return found


def token_macs_rate(whole: int, each: Sequence[tuple[int, int]], sites: Sequence[Site], total: int) -> Rate:
    """Return the multiply-accumulates of one example as a function of how many tokens go on from each layer.

    Parameters
    ----------
    whole : int
        Of the network with all tokens.
    each : sequence of (int, int)
        What `token_macs` found.
    sites : sequence of Site
        Those of tokens, one for each layer but the last; kept counts are of tokens that are there, not that stay anew.
    total : int
        How many tokens enter the first layer.
    """
    terms = [Term(float(whole - sum(single * total + pair * total**2 for single, pair in each[1:])))]
    for (single, pair), site in zip(each[1:], sites, strict=True):
        terms += [Term(float(single), (site.name,)), Term(float(pair), (site.name, site.name))]
    return Rate("macs", tuple(terms))
