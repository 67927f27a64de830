"""Weights of units: how much of a parameter's energy each unit owns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isthmus.sites import Site, Slice


def slice_energy(parameter: Tensor, part: Slice, units: int) -> Tensor:
    """Return the squared weights that each unit owns in one slice, summed, shape ``(units,)``, float64."""
    energy = parameter.detach().movedim(part.dim, 0).double().square().reshape(parameter.shape[part.dim], -1).sum(1)
    owners = torch.from_numpy(part.owner_of(units)) + 1  # the first is that of entries that belong to no unit
    return torch.zeros(units + 1, dtype=torch.float64).index_add_(0, owners, energy)[1:]


def unit_energy(parameters: Mapping[str, Tensor], site: Site) -> npt.NDArray[np.float64]:
    """Return the squared weights that leave with each unit, summed over all slices, shape ``(units,)``.

    A layer's units are layers: each owns every parameter under its path. Embedding tables are left out of the width:
    they hold as many rows as there are tokens, most of them rare, and would drown the rest. Running statistics are no
    weights.
    """
    total = torch.zeros(site.units, dtype=torch.float64)
    if site.kind == "layers":
        for name, parameter in parameters.items():
            if name.startswith(f"{site.module}."):
                total[int(name[len(site.module) + 1 :].split(".")[0])] += parameter.detach().double().square().sum()
        return total.numpy()
    for part in site.slices:
        tensor = parameters.get(part.parameter)
        table = site.kind == "width" and "embeddings." in part.parameter and tensor is not None and tensor.dim() == 2
        if tensor is not None and not table:
            total += slice_energy(tensor, part, site.units)
    return total.numpy()
