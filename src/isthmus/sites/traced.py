"""Traced sites: the sites of any network that runs, found by following its tensors instead of by a declaration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from isthmus.network import Network
from isthmus.sites.coupling import Group, groups_of
from isthmus.sites.experts import EVERY, expert_sites, run_by
from isthmus.sites.following import follow
from isthmus.sites.inputs import random_inputs
from isthmus.sites.repeated import repeated_layers
from isthmus.sites.seen import Trace
from isthmus.sites.site import Attribute, Site, SiteKind, common_module
from isthmus.sites.tracing import trace

WIDTH = "width"
_PLACES: Mapping[str, int] = {"width": 0, "feature": 2}  # all others in between, in the order of their modules


@dataclass(frozen=True)
class Survey:
    """The sites of a network, and in ``left`` what is left alone: a line each, naming the module and the reason."""

    sites: tuple[Site, ...]
    left: tuple[str, ...] = ()


def survey_traced(network: Network) -> Survey:
    """Find the sites of a network by running it once.

    Parameters
    ----------
    network : Network
        Any module; one outside transformers says in ``images`` what it takes.

    Returns
    -------
    Survey
        Streams first, then ``layers`` where there is one chain of layers that holds most of the network, then heads,
        neurons and channels in the order of the network's modules, then features.
    """
    with run_by(network.model, EVERY):
        return _surveyed(network)


def _surveyed(network: Network) -> Survey:
    model = network.model
    inputs = random_inputs(network)
    found = trace(model, inputs)
    left = [
        f"{place.module or network.name}: {place.operator} is not followed; what enters it keeps its width"
        for place in dict.fromkeys(found.obstacles)
    ]
    layers = repeated_layers(model, found)
    sites, unclosed = _sites(model, found, layers)
    sites += expert_sites(model, layers)
    if layers is not None:
        sites.insert(sum(site.kind == "width" for site in sites), layers)
    followed, refused = follow(model, inputs, sites)
    return Survey(tuple(followed), (*left, *unclosed, *refused))


def _sites(model: nn.Module, found: Trace, layers: Site | None) -> tuple[list[Site], list[str]]:
    """Return a site for each group that can be closed, and a line for each that cannot."""
    groups = groups_of(found)
    left = [
        f"{_place(group)}: its {group.units} units stay; {group.trouble or 'there is nowhere to close them'}"
        for group in groups
        if group.trouble or not group.gates
    ]
    rows = [(_kind(model, one, groups), one) for one in groups if one.gates and not one.trouble]
    rows.sort(key=lambda row: _PLACES.get(row[0], 1))
    widths = sum(kind == "width" for kind, _ in rows)
    named: Counter[str] = Counter()
    sites: list[Site] = []
    for kind, group in rows:
        layer = _layer_of(group, layers)
        name = WIDTH if kind == "width" and widths == 1 else _name(model, kind, group, layer)
        named[name] += 1
        name += f".{named[name]}" if named[name] > 1 else ""
        stream = kind == "width" or (kind == "channels" and len(_weights(model, group, 0)) > 1)
        # The mean and variance of one unit are no measure of anything but rounding.
        least = max(2 if _normed(group) else 1, group.units // 16) if stream else 1
        sites.append(Site(name, kind, group.units, group.slices, group.gates, _pads(model, group), layer, least))
    return sites, left


def _pads(model: nn.Module, group: Group) -> tuple[Attribute, ...]:
    """Return the integers of modules that say how many channels of zeros they put before and after others."""
    found: list[Attribute] = []
    for path, before, after in group.pads:
        integers = {name: value for name, value in vars(model.get_submodule(path)).items() if type(value) is int}
        for among in (before, after):
            name = next((name for name, value in integers.items() if among and value == len(among)), None)
            if name is not None:
                del integers[name]
                found.append(Attribute(path, name, 1, among))
    return tuple(found)


def _kind(model: nn.Module, group: Group, groups: Sequence[Group]) -> SiteKind:
    """Return what a group is: heads, a stream that others read, convolutions' channels, neurons, or a last feature."""
    if group.heads:
        return "heads"
    writers, readers = _weights(model, group, 0), _weights(model, group, 1)
    if not readers:
        return "feature"
    normed = _normed(group)
    attended = {part.parameter for other in groups if other.heads for part in other.slices}
    if attended & set(readers) and (normed or len(writers) > 1):
        return "width"
    matrices = {part.parameter for part in group.slices if part.parameter.endswith(".weight")}
    convolved = sum(_is_convolution(model, name) for name in matrices)
    if convolved > 1 or any(_is_convolution(model, name) for name in writers):
        return "channels"
    return "width" if normed else "neurons"


def _normed(group: Group) -> bool:
    return any(gate.where == "norm" for gate in group.gates)


def _weights(model: nn.Module, group: Group, dim: int) -> list[str]:
    """Return the weights of linear maps and convolutions that write a group (``dim`` 0) or read it (1).

    A depthwise convolution does neither: its channels pass through.
    """
    found = []
    for part in group.slices:
        path, _, own = part.parameter.rpartition(".")
        module = model.get_submodule(path)
        plain = isinstance(module, nn.Linear) or (_is_convolution(model, part.parameter) and module.groups == 1)
        turned = isinstance(module, Conv1D)  # a linear map whose weight is (in, out)
        if own == "weight" and (plain or turned) and part.dim == (1 - dim if turned else dim):
            found.append(part.parameter)
    return found


def _is_convolution(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _layer_of(group: Group, layers: Site | None) -> int | None:
    """Return the number of the layer that holds all of a group's tensors, where one does."""
    if layers is None:
        return None
    prefix = f"{layers.module}."
    inside = {
        part.parameter[len(prefix) :].partition(".")[0] if part.parameter.startswith(prefix) else ""
        for part in group.slices
    }
    index = inside.pop()
    return int(index) if not inside and index else None


def _place(group: Group) -> str:
    """Return the innermost module that holds all of a group's tensors; where that is the network, of the first."""
    names = [part.parameter for part in group.slices]
    return common_module(names) or common_module(names[:1])


def _name(model: nn.Module, kind: str, group: Group, layer: int | None) -> str:
    if layer is not None and kind in ("heads", "neurons"):
        return f"layers.{layer}.{kind}"
    writers = _weights(model, group, 0) or [group.slices[0].parameter]
    if kind == "feature":
        return f"feature.{writers[0].rpartition('.')[0]}"
    place = _place(group) if kind in ("heads", "neurons") else writers[0].rpartition(".")[0]
    return f"{place}.{kind}"
