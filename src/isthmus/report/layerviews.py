"""Layers: each measure of the residual stream as a row of bars, one for each layer, and all figures as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.report.data import LayerProfile
from isthmus.report.numbers import plain
from isthmus.report.scales import finite, portion
from isthmus.report.siteviews import SiteTable


@dataclass(frozen=True)
class LayerBar:
    """One layer's value: its place from below, in percent of the row's largest, and what it says when pointed at."""

    height: float
    tip: str


@dataclass(frozen=True)
class ProfileView:
    """One measure: its name and meaning, its bars, and its least and largest value."""

    name: str
    unit: str
    meaning: str
    bars: tuple[LayerBar, ...]
    least: str
    largest: str


@dataclass(frozen=True)
class LayerView:
    """All measures, and the table of their figures."""

    profiles: tuple[ProfileView, ...]
    ends: tuple[str, str]
    table: SiteTable


def layer_view(layers: Sequence[str], profiles: Sequence[LayerProfile]) -> LayerView | None:
    """Return what is drawn of the layers, or None where nothing was measured."""
    known = [profile for profile in profiles if finite(profile.values)]
    if not layers or not known:
        return None
    columns = ("layer", *(f"{profile.name}, {profile.unit}" if profile.unit else profile.name for profile in known))
    rows = tuple((layer, *(plain(profile.values[place]) for profile in known)) for place, layer in enumerate(layers))
    return LayerView(
        tuple(_profile(layers, profile) for profile in known), (layers[0], layers[-1]), SiteTable(columns, rows)
    )


def _profile(layers: Sequence[str], profile: LayerProfile) -> ProfileView:
    values = finite(profile.values)
    largest = max(max(values), 0.0)
    bars = tuple(
        LayerBar(portion(value, largest), f"{layer}\n{profile.name} {plain(value)} {profile.unit}".strip())
        for layer, value in zip(layers, profile.values, strict=True)
    )
    return ProfileView(profile.name, profile.unit, profile.meaning, bars, plain(min(values)), plain(max(values)))
