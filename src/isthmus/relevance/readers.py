"""Readers: what reads a site is solved anew as units close, so that the units left make up for those that went.

The output of a linear map or convolution ``W`` is to stay what it was: with the covariance ``G`` of what enters it, the
weights ``W'`` on the columns that stay are those of least ``tr (W - W') (G + damping) (W - W')^T`` (Hassibi and Stork
1993, "Second order derivatives for network pruning: Optimal brain surgeon", for one unit of several columns at a time).
The means of what enters go into a bias, or into the running mean of the batch norm that follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.examples import Example
from isthmus.network import Network, encode, outputs
from isthmus.sites import Site
from isthmus.sites.surgery import Kept

DAMPING = 1e-2
"""Of the mean variance of what enters; it holds weights where they are."""
POSITIONS = 64
"""At so many places of a map, drawn anew for every batch, what a convolution reads is looked at."""
BATCH = 64
MOST_COLUMNS = 5120
"""Readers with more columns are left as they are: their covariance would take more than 210 MB."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of what enters a reader.

    Parameters
    ----------
    covariance : Tensor, shape ``(columns, columns)``
        About the mean where that can be made up for, else about zero; float64.
    mean : Tensor, shape ``(columns,)``
        Zeros where it cannot be made up for.
    """

    covariance: Tensor
    mean: Tensor

    def damped(self) -> Tensor:
        """Return the covariance with damping on its diagonal."""
        return self.covariance + (DAMPING * float(self.covariance.diagonal().mean()) + 1e-12) * torch.eye(
            len(self.covariance), dtype=torch.float64
        )


@dataclass(frozen=True)
class Reader:
    """The one module that reads a site.

    Parameters
    ----------
    site : Site
    module : nn.Linear or nn.Conv2d
    norm : batch norm or None
        The one that its output enters.
    columns : Tensor, shape ``(units, each)``
        The columns of each unit in the weight as a matrix ``(rows, columns)``.
    moments : Moments
    """

    site: Site
    module: nn.Linear | nn.Conv2d
    norm: nn.modules.batchnorm._BatchNorm | None
    columns: Tensor
    moments: Moments

    def without(self, closed: Sequence[int]) -> Tensor:
        """Return the weight as a matrix in which the columns of closed units are zero, float64."""
        weight = self.module.weight.detach().double().flatten(1)
        gone = torch.zeros(len(self.columns), dtype=torch.bool)
        gone[torch.as_tensor(list(closed), dtype=torch.long)] = True
        stays = self.columns[~gone].flatten()
        damped = self.moments.damped()
        solved = torch.zeros_like(weight)
        solved[:, stays] = torch.linalg.solve(damped[stays][:, stays], damped[stays] @ weight.T).T
        return solved

    def close(self, closed: Sequence[int]) -> None:
        """Set the weight to what closed units leave of it, and what follows to its means and variances."""
        old = self.module.weight.detach().double().flatten(1)
        new = self.without(closed)
        shift = (new - old) @ self.moments.mean
        with torch.no_grad():
            self.module.weight.copy_(new.reshape(self.module.weight.shape))
            if self.norm is not None:
                held: Any = self.norm
                held.running_mean.add_(shift)
                ratio = _variances(new, self.moments) / _variances(old, self.moments).clamp(min=1e-30)
                held.running_var.mul_(ratio)
            elif self.module.bias is not None:
                self.module.bias.sub_(shift)

    @contextmanager
    def closed(self, closed: Sequence[int]) -> Iterator[None]:
        """Close units within ``with``; afterwards the module and its norm are as they were."""
        tensors = [self.module.weight, self.module.bias]
        tensors += [] if self.norm is None else [self.norm.running_mean, self.norm.running_var]
        before = [(tensor, tensor.detach().clone()) for tensor in tensors if tensor is not None]
        try:
            self.close(closed)
            yield
        finally:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)

    def order(self) -> tuple[npt.NDArray[np.int64], Doubles]:
        """Return the units in the order in which they close with the least error each, and the error that each adds.

        After every unit the weights of the others, and the inverse covariance, are what its leaving makes of them.
        Fixed units, and those that must stay at the end, are not listed.
        """
        weight = self.module.weight.detach().double().flatten(1).clone()
        inverse = torch.linalg.inv(self.moments.damped())
        free = [unit for unit in range(self.site.units) if unit not in set(self.site.fixed)]
        most = min(len(free), self.site.units - self.site.minimum)
        found, errors = [], []
        for _ in range(most):
            columns = self.columns[free]
            blocks = torch.linalg.inv(inverse[columns[:, :, None], columns[:, None, :]])
            parts = weight[:, columns].movedim(1, 0)
            costs = torch.einsum("nrc,ncd,nrd->n", parts, blocks, parts)
            least = int(costs.argmin())
            own = columns[least]
            weight -= weight[:, own] @ blocks[least] @ inverse[own]
            inverse -= inverse[:, own] @ blocks[least] @ inverse[own]
            # Zero but for rounding; a block of zeros has no inverse, but is never asked for again.
            weight[:, own] = 0
            found.append(free.pop(least))
            errors.append(max(float(costs[least]), 0.0))
        return np.asarray(found, dtype=np.int64), np.asarray(errors)


def _variances(weight: Tensor, moments: Moments) -> Tensor:
    """Return the variance of each output, shape ``(rows,)``."""
    return torch.einsum("rc,cd,rd->r", weight, moments.covariance, weight)


def find_readers(network: Network, sites: Sequence[Site], examples: Sequence[Example]) -> dict[str, Reader]:
    """Return the reader of every site that has just one, with the moments of what enters it, by site.

    Parameters
    ----------
    network : Network
        Whose modules the readers hold.
    sites : sequence of Site
    examples : sequence of str or of Image
        A few hundred.
    """
    model = network.model
    places: dict[str, tuple[Site, Tensor]] = {}
    for site in sites:
        reading = [
            (part, module)
            for part in site.slices
            if part.dim == 1 and isinstance(module := _owner(model, part.parameter), nn.Linear | nn.Conv2d)
        ]
        if len(reading) != 1 or site.kind not in ("channels", "neurons", "heads"):
            continue
        part, module = reading[0]
        size = module.weight[0].numel()
        if size > MOST_COLUMNS or (isinstance(module, nn.Conv2d) and not _unfolds(module)):
            continue
        area = size // module.weight.shape[1]
        entries = torch.as_tensor(part.entries(site.units))
        columns = (entries[:, :, None] * area + torch.arange(area)).flatten(1)
        places[part.parameter.rpartition(".")[0]] = (site, columns)
    found = _moments(network, list(places), examples)
    readers = {}
    for path, (site, columns) in places.items():
        if path not in found:
            continue
        moments, norm = found[path]
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        readers[site.name] = Reader(site, module, norm, columns, moments)
    return readers


def close_all(readers: Mapping[str, Reader], kept: Kept) -> int:
    """Close what is not kept in every reader; return how many were changed."""
    count = 0
    for name, reader in readers.items():
        closed = sorted(set(range(reader.site.units)) - set(kept.get(name, range(reader.site.units))))
        if closed:
            reader.close(closed)
            count += 1
    return count


def _owner(model: nn.Module, parameter: str) -> nn.Module | None:
    path, _, own = parameter.rpartition(".")
    return model.get_submodule(path) if own == "weight" else None


def _unfolds(module: nn.Conv2d) -> bool:
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class _Sums:
    """Adds up what enters a module, and remembers which batch norm its output enters."""

    def __init__(self, module: nn.Module, generator: torch.Generator, mask: list[Tensor | None]) -> None:
        self.module, self.generator, self.mask = module, generator, mask
        self.count = 0
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.output: Tensor | None = None
        self.norm: nn.modules.batchnorm._BatchNorm | None = None

    def see(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        rows = self._rows(module, args[0].detach())
        self.output = output
        self.count += len(rows)
        self.first = self.first + rows.double().sum(0)
        self.second = self.second + (rows.T @ rows).double()

    def _rows(self, module: nn.Module, entering: Tensor) -> Tensor:
        """Return some of the rows that a matrix of the weight is multiplied with, shape ``(rows, columns)``."""
        if isinstance(module, nn.Conv2d):
            sides: Any = module.kernel_size, module.dilation, module.padding, module.stride
            patches = F.unfold(entering.float(), sides[0], dilation=sides[1], padding=sides[2], stride=sides[3])
            places = torch.randint(patches.shape[-1], (min(POSITIONS, patches.shape[-1]),), generator=self.generator)
            return patches[:, :, places].movedim(1, 2).flatten(0, 1)
        mask = self.mask[0]
        if mask is not None and entering.shape[:-1] == mask.shape:
            return entering.float()[mask]
        return entering.float().flatten(0, -2)

    def moments(self) -> Moments | None:
        """Return the moments; about zero where neither a bias nor a batch norm can make up for the mean."""
        if self.count < 2:
            return None
        mean = torch.as_tensor(self.first) / self.count
        second = torch.as_tensor(self.second) / self.count
        if self.norm is None and getattr(self.module, "bias", None) is None:
            return Moments(second, torch.zeros_like(mean))
        return Moments(second - torch.outer(mean, mean), mean)


def _moments(
    network: Network, paths: Sequence[str], examples: Sequence[Example]
) -> dict[str, tuple[Moments, nn.modules.batchnorm._BatchNorm | None]]:
    """Run the examples and return the moments of what enters each module, and the batch norm that follows it."""
    model, generator = network.model, torch.Generator().manual_seed(0)
    mask: list[Tensor | None] = [None]  # of the batch that is running
    watched = {path: _Sums(model.get_submodule(path), generator, mask) for path in paths}
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def entering(norm: nn.modules.batchnorm._BatchNorm) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            for one in watched.values():
                if one.output is args[0]:
                    one.norm = norm

        return hook

    handles: list[Any] = [one.module.register_forward_hook(one.see) for one in watched.values()]
    handles += [norm.register_forward_pre_hook(entering(norm)) for norm in norms if norm.track_running_stats]
    try:
        with torch.no_grad():
            for start in range(0, len(examples), BATCH):
                inputs = encode(network, examples[start : start + BATCH])
                mask[0] = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
                outputs(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: (moments, one.norm) for path, one in watched.items() if (moments := one.moments()) is not None}
