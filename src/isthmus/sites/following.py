"""Following: sizes that a network's code states, which must follow its units, and units that must stay for them.

A site that was traced is right as far as tensors go. Code may also state a size (``view(..., self.num_heads, -1)``).
Each site is therefore narrowed and run, in large networks on the meta device. Integers of modules that count
its units are made to follow; sites that only run when they lose equally many units become one; a site with which the
network does not run is left alone.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.sites.coupling import FREE_OUTPUTS
from isthmus.sites.site import Attribute, Site, common_module
from isthmus.sites.surgery import narrow_model

#: Names under which modules keep how many heads there are, or how wide all of them are together.
HEAD_COUNTS = frozenset(("num_attention_heads", "num_heads", "n_heads", "heads", "num_key_value_heads", "num_kv_heads"))
HEAD_SIZES = frozenset(("all_head_size", "out_dim_projection", "out_dim_keys_values", "inner_dim", "split_size"))
#: How many query heads read the same keys and values.
SHARING = "num_key_value_groups"
#: Names under which modules keep how wide something is.
SIZES = frozenset(
    ("hidden_size", "embed_dim", "dim", "hidden_dim", "channels", "num_channels", "groups", "num_features")
)


#: Parameters from which on it takes longer to compute than to work out shapes.
_LARGE = 3_000_000


def follow(model: nn.Module, inputs: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[list[Site], list[str]]:
    """Return the sites with which a model runs, with the attributes that follow them, and a line for each other one."""
    following = [_with_attributes(model, site, sizes=False) for site in sites]
    trial = _Trial(model, inputs)
    if trial.error(following) is None:
        return following, []
    refused: dict[str, str] = {}
    for kind in dict.fromkeys(site.kind for site in following):
        refused |= trial.failing([site for site in following if site.kind == kind])
    mended: dict[str, Site] = {}
    for site in following:
        if site.name in refused:
            more = _with_attributes(model, site, sizes=True)
            if more != site and trial.error([more]) is None:
                mended[site.name] = more
    gone: set[str] = set()
    for cluster in _clusters([site for site in following if site.name in refused and site.name not in mended]):
        for members in _unions(cluster):
            united = _with_attributes(model, _united(members), sizes=True)
            if trial.error([united]) is None:
                mended[united.name] = united
                gone.update(site.name for site in members if site.name != united.name)
                break
    kept = [mended.get(site.name, site) for site in following if site.name not in gone]
    left = [
        f"{site.name}: its {site.units} units stay; without some the network fails: {refused[site.name]}"
        for site in kept
        if site.name in refused and site.name not in mended
    ]
    return [site for site in kept if site.name not in refused or site.name in mended], left


def _clusters(sites: Sequence[Site]) -> list[list[Site]]:
    """Return the sets of sites that are joined by a common tensor and have equally many units."""
    clusters: list[list[Site]] = []
    for site in sites:
        own = {part.parameter for part in site.slices}
        near = [
            cluster
            for cluster in clusters
            if cluster[0].units == site.units
            and any(own & {part.parameter for part in other.slices} for other in cluster)
        ]
        clusters = [cluster for cluster in clusters if cluster not in near]
        clusters.append([*(other for cluster in near for other in cluster), site])
    return [cluster for cluster in clusters if len(cluster) > 1]


def _unions(cluster: Sequence[Site]) -> Iterator[list[Site]]:
    """Yield the unions of sites to try, the largest first: sites of like names are in it together or not at all."""
    role = {site.name: re.sub(r"\d+", "#", site.name) for site in cluster}
    roles = sorted(set(role.values()))
    for count in range(len(roles), 0, -1):
        for chosen in itertools.combinations(roles, count):
            union = [site for site in cluster if role[site.name] in chosen]
            if len(union) > 1:
                yield union


def _united(sites: Sequence[Site]) -> Site:
    """Return one site whose units are those of several, the first with the first and so on."""
    return replace(
        max(sites, key=lambda site: len(site.slices)),
        slices=tuple(part for site in sites for part in site.slices),
        gates=tuple(dict.fromkeys(gate for site in sites for gate in site.gates)),
        attributes=tuple(dict.fromkeys(part for site in sites for part in site.attributes)),
        minimum=max(site.minimum for site in sites),
    )


def _with_attributes(model: nn.Module, site: Site, *, sizes: bool) -> Site:
    """Let the integers that count a site's units follow them: those of heads always, others where asked for."""
    if not site.slices or not (sizes or site.kind == "heads"):
        return site
    each = {part.each for part in site.slices}
    factors = {each_one * site.units: each_one for each_one in each}
    found = []
    for path, module in _around(model, site):
        for name, value in vars(module).items():
            if type(value) is not int:
                continue
            if site.kind == "heads" and (name in HEAD_COUNTS or (name == SHARING and len(each) == 1)):
                # A unit is as many query heads as read the same keys and values; where all do, it is one of them.
                if value > 1 and value % site.units == 0:
                    found.append(Attribute(path, name, value // site.units))
            elif name in (HEAD_SIZES if site.kind == "heads" else SIZES) and value in factors:
                found.append(Attribute(path, name, factors[value]))
    return replace(site, attributes=tuple(dict.fromkeys((*site.attributes, *found))))


def _around(model: nn.Module, site: Site) -> Iterable[tuple[str, nn.Module]]:
    """Yield the modules whose code may state a site's size: those that hold its tensors, and what is around heads."""
    owners = {part.parameter.rpartition(".")[0] for part in site.slices}
    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm, nn.Embedding)
    if site.kind == "heads":
        place = common_module(part.parameter for part in site.slices)
        inside = [path for path, _ in model.named_modules() if path == place or path.startswith(f"{place}.")]
    else:
        inside = sorted(owners | {owner.rpartition(".")[0] for owner in owners})
    for path in inside:
        module = model.get_submodule(path)
        if not isinstance(module, known):
            yield path, module


class _Trial:
    """Runs narrowed copies of a model; of a large one without computing anything."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self.model, self.inputs = model, dict(inputs)
        if sum(parameter.numel() for parameter in model.parameters()) >= _LARGE:
            try:
                self.model, self.inputs = _on_meta(model), {name: tensor.to("meta") for name, tensor in inputs.items()}
                self.shapes = self._run(self.model)
            except Exception:  # code that looks at values cannot run without any
                self.model, self.inputs = model, dict(inputs)
        self.shapes = self._run(self.model)

    def _run(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        with torch.no_grad():
            output: Any = model(**self.inputs)
        if isinstance(output, Tensor):
            return {"output": tuple(output.shape)}
        named = output.items() if isinstance(output, Mapping) else enumerate(output)
        return {str(name): tuple(value.shape) for name, value in named if isinstance(value, Tensor)}

    def error(self, sites: Sequence[Site]) -> str | None:
        """Return why a model without the last units of some sites does not run, or gives other shapes; None if it does.

        Sites of equally many units lose unlike numbers of them, so that none runs by luck beside another.
        """
        seen: Counter[int] = Counter()
        kept = {}
        for site in sites:
            kept[site.name] = range(max(site.minimum, site.units - 1 - seen[site.units] % (site.units - 1)))
            seen[site.units] += 1
        try:
            shapes = self._run(narrow_model(self.model, sites, kept))
        except Exception as error:  # whatever a network raises, it does not run
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        for name, wanted in self.shapes.items():
            shape = shapes.get(name)
            if shape != wanted and (name not in FREE_OUTPUTS or shape is None or len(shape) != len(wanted)):
                return f"its output {name} becomes {shape}"
        return None

    def failing(self, sites: Sequence[Site]) -> dict[str, str]:
        """Return the sites with which the model does not run, with the reason, by halving."""
        reason = self.error(sites)
        if reason is None or not sites:
            return {}
        if len(sites) == 1:
            return {sites[0].name: reason}
        half = len(sites) // 2
        return {**self.failing(sites[:half]), **self.failing(sites[half:])}


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a model without values."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo)
