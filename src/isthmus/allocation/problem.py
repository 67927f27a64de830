"""The problem that allocation solves, and its answer: which units of every site stay within the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from isthmus.cost.rates import Rate, presence
from isthmus.errors import BadInput
from isthmus.sites.site import Site

Floats: TypeAlias = NDArray[np.float64]

# How many settings of a site are tried at most in one pass, by kind; all where a kind is not named.
LEVELS: Mapping[str, int] = {"width": 32, "neurons": 32, "vocabulary": 48, "feature": 32}

# By how much of a limit a rate may pass it: rounding in sums of floats, far below one parameter of any network.
SLACK = 1e-12


@dataclass(frozen=True)
class Problem:
    """What is to be allocated.

    Parameters
    ----------
    sites : tuple of Site
    relevance : mapping of str to ndarray, shape ``(units,)``
        Nats that are lost with each unit, by site. A site that is missing is left whole. Estimates below zero order
        the units but count as zero: taking something away is not believed to help.
    rates : mapping of str to Rate
        What the network costs in each currency, as a function of the kept counts.
    limits : mapping of str to float
        The most it may cost, as amounts (parameters, bytes, MACs, ms); each currency must be in ``rates``.
    original : mapping of str to float
        What the original costs; read for the words of a refusal only.
    levels : mapping of str to int
        The most settings tried in one pass, by site name or kind, at least 2; `LEVELS` where nothing is said.
    frozen : frozenset of str
        Kinds of sites that are left whole.
    lasting : mapping of str to float
        How much a nat counts in the choice, by kind of site; 1 where nothing is said.
    """

    sites: tuple[Site, ...]
    relevance: Mapping[str, Floats]
    rates: Mapping[str, Rate]
    limits: Mapping[str, float]
    original: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    lasting: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {site.name: site for site in self.sites}
        for name, values in self.relevance.items():
            site = known.get(name)
            if site is None or np.shape(values) != (site.units,):
                raise ValueError(f"relevance of {name}: shape {np.shape(values)} does not fit the sites")
            if not np.isfinite(values).all():
                raise BadInput(f"relevance of site {name} is not finite; look for NaN in the weights or in the data")
        if missing := set(self.limits) - set(self.rates):
            raise ValueError(f"no rate is given for {', '.join(sorted(missing))}")
        if sum(site.kind == "layers" for site in self.sites) > 1:
            raise ValueError("allocation knows one site of kind layers")


@dataclass(frozen=True)
class Allocation:
    """Which units stay.

    Parameters
    ----------
    kept : dict of str to tuple of int
        The units that stay, rising, of every site that becomes narrower. Sites within removed layers are left out.
    distortion : dict of str to float
        Nats that each of these sites is predicted to lose.
    rates : dict of str to float
        What the network is predicted to cost, in every currency that has a rate.
    """

    kept: dict[str, tuple[int, ...]]
    distortion: dict[str, float]
    rates: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """A site whose units can go, the most relevant staying longest.

    ``order`` (units,) lists the units from the first to stay; ``lost`` (units + 1,) is the distortion in nats when only
    the first k stay; ``settings`` are the counts that may be chosen, rising.
    """

    site: Site
    order: NDArray[np.int64]
    lost: Floats
    settings: NDArray[np.int64]

    @property
    def least(self) -> int:
        """The fewest units that may stay."""
        return max(self.site.minimum, len(set(self.site.fixed)), 1)


@dataclass(frozen=True)
class Menu:
    """Everything that can be chosen: the settings of the free sites, and which layers stay.

    ``removal`` (layers,) holds the nats lost with each layer; it is empty where no layer may go, and then all stay.
    """

    choices: Mapping[str, Choice]
    layers: Site | None
    removal: Floats

    def layer_of(self, name: str) -> int | None:
        """Return the layer that a free site comes and goes with; None where it always stays."""
        layer = self.choices[name].site.layer
        return layer if self.layers is not None else None


@dataclass(frozen=True)
class Selection:
    """What was chosen: the kept count of every free site, and which layers stay (empty where none may go)."""

    counts: Mapping[str, int]
    present: tuple[bool, ...]
    distortion: float


def menu_of(problem: Problem, around: Selection | None = None) -> Menu:
    """List what can be chosen.

    Parameters
    ----------
    problem : Problem
    around : Selection, optional
        An answer found before: the settings then lie more densely between the neighbours of what it chose.
    """
    choices: dict[str, Choice] = {}
    layers: Site | None = None
    removal = np.zeros(0)
    for site in problem.sites:
        if site.name not in problem.relevance or site.kind in problem.frozen:
            continue
        values = np.asarray(problem.relevance[site.name], dtype=np.float64) * problem.lasting.get(site.kind, 1.0)
        if site.kind == "layers":
            layers, removal = site, np.maximum(values, 0.0)
            continue
        choices[site.name] = _choice(site, values, problem.levels)
    menu = Menu(choices, layers, removal)
    return menu if around is None else _denser(menu, around, problem.levels)


def _choice(site: Site, values: Floats, levels: Mapping[str, int]) -> Choice:
    staying = np.zeros(site.units)
    staying[list(site.fixed)] = 1.0
    order = np.lexsort((np.arange(site.units), -values, -staying))
    lost = np.zeros(site.units + 1)
    lost[:-1] = np.cumsum(np.maximum(values[order], 0.0)[::-1])[::-1]
    whole = Choice(site, order, lost, np.zeros(0, dtype=np.int64))
    return Choice(site, order, lost, _spaced(whole.least, site.units, _levels(site, levels)))


def _levels(site: Site, levels: Mapping[str, int]) -> int:
    given = levels.get(site.name, levels.get(site.kind, LEVELS.get(site.kind, site.units)))
    return max(2, int(given))


def _spaced(first: int, last: int, most: int) -> NDArray[np.int64]:
    if last - first < most:
        return np.arange(min(first, last), last + 1)
    return np.unique(np.linspace(first, last, most).round().astype(np.int64))


def _denser(menu: Menu, around: Selection, levels: Mapping[str, int]) -> Menu:
    choices: dict[str, Choice] = {}
    for name, choice in menu.choices.items():
        layer = menu.layer_of(name)
        if layer is not None and not around.present[layer]:
            choices[name] = choice
            continue
        chosen = around.counts[name]
        at = int(np.searchsorted(choice.settings, chosen))
        first, last = choice.settings[max(0, at - 1)], choice.settings[min(len(choice.settings) - 1, at + 1)]
        settings = np.union1d(_spaced(int(first), int(last), _levels(choice.site, levels)), [chosen])
        choices[name] = Choice(choice.site, choice.order, choice.lost, settings.astype(np.int64))
    return Menu(choices, menu.layers, menu.removal)


def counts_of(problem: Problem, menu: Menu, selection: Selection) -> dict[str, float]:
    """Return what a rate is evaluated on. Sites of layers that go count zero."""
    counts = {site.name: float(site.units) for site in problem.sites}
    for site in problem.sites:
        if site.kind == "layers":
            present = selection.present if menu.layers is not None else (True,) * site.units
            counts.update({presence(layer): float(stays) for layer, stays in enumerate(present)})
            counts[site.name] = float(sum(present))
    # A site's layer may be counted although the layers are no site.
    counts.update({presence(site.layer): 1.0 for site in problem.sites if site.layer is not None} | counts)
    counts.update({name: float(count) for name, count in selection.counts.items()})
    for site in problem.sites:
        if menu.layers is not None and site.layer is not None and not selection.present[site.layer]:
            counts[site.name] = 0.0
    return counts


def rates_of(problem: Problem, menu: Menu, selection: Selection) -> dict[str, float]:
    """Return what a selection costs, in every currency that has a rate."""
    counts = counts_of(problem, menu, selection)
    return {currency: float(rate(counts)) for currency, rate in problem.rates.items()}


def allocation_of(problem: Problem, menu: Menu, selection: Selection) -> Allocation:
    """Turn a selection into the units that stay."""
    kept: dict[str, tuple[int, ...]] = {}
    distortion: dict[str, float] = {}
    if menu.layers is not None and not all(selection.present):
        kept[menu.layers.name] = tuple(layer for layer, stays in enumerate(selection.present) if stays)
        lost = float(menu.removal[~np.asarray(selection.present)].sum())
        distortion[menu.layers.name] = lost / problem.lasting.get(menu.layers.kind, 1.0)
    for name, choice in menu.choices.items():
        count, layer = selection.counts[name], menu.layer_of(name)
        if count == choice.site.units or (layer is not None and not selection.present[layer]):
            continue
        kept[name] = tuple(int(unit) for unit in np.sort(choice.order[:count]))
        distortion[name] = float(choice.lost[count]) / problem.lasting.get(choice.site.kind, 1.0)
    return Allocation(kept, distortion, rates_of(problem, menu, selection))


def distortion_of(menu: Menu, counts: Mapping[str, int], present: tuple[bool, ...]) -> float:
    """Return the nats lost by a selection, summed over the layers that go and the sites that stay."""
    total = float(menu.removal[~np.asarray(present, dtype=bool)].sum()) if menu.layers is not None else 0.0
    for name, choice in menu.choices.items():
        layer = menu.layer_of(name)
        if layer is None or present[layer]:
            total += float(choice.lost[counts[name]])
    return total
