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
    moved = parameter.detach().movedim(part.dim, 0).double()
    squares = moved.square().reshape(len(moved), -1).sum(1)
    return squares[torch.from_numpy(part.entries(units))].sum(1)


def unit_energy(parameters: Mapping[str, Tensor], site: Site) -> npt.NDArray[np.float64]:
    """Return the squared weights that leave with each unit, summed over all slices, shape ``(units,)``.

    A layer's units are layers: each owns every parameter under its path. Embedding tables are left out of the width:
    they hold as many rows as there are tokens, most of them rare, and would drown the rest. Running statistics, which
    leave with a channel too, are no weights.
    """
    total = torch.zeros(site.units, dtype=torch.float64)
    if site.kind == "layers":
        for name, parameter in parameters.items():
            if name.startswith(f"{site.module}."):
                total[int(name[len(site.module) + 1 :].split(".")[0])] += parameter.detach().double().square().sum()
        return total.numpy()
    for part in site.slices:
        if part.parameter not in parameters:
            continue
        if not (site.kind == "width" and "embeddings." in part.parameter and parameters[part.parameter].dim() == 2):
            total += slice_energy(parameters[part.parameter], part, site.units)
    return total.numpy()
