"""Views of the sites: where the information is, and what the plan did to each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isthmus.report.data import SiteRow
from isthmus.report.numbers import NONE, nats, percent, si
from isthmus.report.scales import STEPS, finite, heat

#: Kinds whose parameters do not overlap; `width` and `layers` run across them.
_DISJOINT = ("vocabulary", "heads", "neurons", "channels", "experts")
_ORDER = ("vocabulary", "width", "layers", "heads", "neurons", "channels", "experts", "feature")
#: Whole-network kinds drawn below the layers, where the data leaves.
_LAST = ("feature",)


def _rank(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


@dataclass(frozen=True)
class Segment:
    """A part of a whole: its kind, its share in percent, its place in the list of kinds (-1: the rest)."""

    kind: str
    place: int
    share: float
    text: str
    tip: str


@dataclass(frozen=True)
class Partition:
    """How parameters, MACs and information are spread over the kinds of site."""

    rows: tuple[tuple[str, str, tuple[Segment, ...]], ...]
    kinds: tuple[str, ...]
    rest: bool
    sentence: str


def partition(sites: Sequence[SiteRow], originals: Mapping[str, float]) -> Partition | None:
    """Spread each total over the kinds whose sites do not overlap.

    Parameters
    ----------
    sites : sequence of SiteRow
    originals : mapping of str to float
        What the original costs by currency, so that what belongs to no such site can be shown as the rest.
    """
    kinds = tuple(kind for kind in _DISJOINT if any(site.kind == kind for site in sites))
    if len(kinds) < 2:
        return None

    def spread(values: Sequence[tuple[str, float | None]]) -> list[float]:
        return [
            sum(max(0.0, value) for of, value in values if of == kind for value in finite([value])) for kind in kinds
        ]

    sums = {
        "Parameters": spread([(site.kind, site.params) for site in sites]),
        "MACs": spread([(site.kind, site.macs) for site in sites]),
        "Information": spread([(site.kind, site.relevance_total) for site in sites]),
    }
    totals = {
        "Parameters": sum(finite([originals.get("params")])),
        "MACs": sum(finite([originals.get("macs")])),
    }
    rows, rest, largest = [], False, {}
    for name, parts in sums.items():
        total = max(totals.get(name, 0.0), sum(parts))
        if sum(parts) <= 0:
            continue
        write = nats if name == "Information" else si
        amounts = [*zip(kinds, range(len(kinds)), parts, strict=True), ("the rest", -1, total - sum(parts))]
        segments = tuple(
            Segment(kind, place, 100 * amount / total, percent(amount / total, 2),
                    f"{kind}: {write(amount)}, {percent(amount / total)} of {name if name == 'MACs' else name.lower()}")
            for kind, place, amount in amounts
            if amount > 0.002 * total
        )  # fmt: skip
        rest = rest or segments[-1].place < 0
        largest[name] = (kinds[parts.index(max(parts))], max(parts) / total)
        rows.append((name, write(total), segments))
    return Partition(tuple(rows), kinds, rest, _sentence(largest)) if rows else None


def _sentence(largest: Mapping[str, tuple[str, float]]) -> str:
    """Say which kind holds most of what, kind by kind."""
    words = {"Parameters": "parameters", "MACs": "MACs", "Information": "information"}
    held: dict[str, list[str]] = {}
    for name, (kind, share) in largest.items():
        held.setdefault(kind, []).append(f"{percent(share, 2)} of the {words[name]}")
    return "; ".join(f"{_listed(parts)} are in the {kind}" for kind, parts in held.items()) + "."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


@dataclass(frozen=True)
class Cell:
    """A site in the map: its colour step (None where not measured), figure, profile over its units, and tip."""

    step: int | None
    text: str
    profile: str
    across: float
    tip: str


@dataclass(frozen=True)
class Map:
    """Layers by kinds of site, with the sites of the whole network before and after the layers."""

    kinds: tuple[str, ...]
    before: tuple[tuple[str, Cell], ...]
    layers: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    after: tuple[tuple[str, Cell], ...]
    legend: tuple[str, str, str]
    steps: tuple[int, ...]
    log: bool


def _gap(bars: int) -> float:
    """Return the gap after a bar as a share of its place: a few pixels, whether the bars are few or many."""
    return min(0.18, 0.006 * bars)


def _bars(values: Sequence[float]) -> str:
    """Return the path of one bar per value, each a share of the height (0 to 1), in a box one unit a bar."""
    width = f"{1 - _gap(len(values)):.3g}"
    return "".join(
        f"M{index} 1v{-min(1.0, max(0.0, value)):.3f}h{width}V1z" for index, value in enumerate(values) if value > 0
    )


def _profile(values: Sequence[float]) -> str:
    known = [value if value in finite([value]) else 0.0 for value in values]
    top = max(known, default=0.0)
    return _bars([value / top for value in known]) if top > 0 else ""


def _tip(site: SiteRow) -> str:
    kept = f", {site.kept:,} kept ({percent(site.kept / site.units)})" if site.kept is not None and site.units else ""
    lines = [
        site.name,
        f"{site.units:,} {'unit' if site.units == 1 else 'units'}{kept}",
        f"{si(site.params)} parameters · {si(site.macs)} MACs" if site.params or site.macs else "",
        nats(site.relevance_total) + " in all" if site.relevance_total is not None else "",
    ]
    return "\n".join(line for line in lines if line)


def _layer_cells(sites: Sequence[SiteRow]) -> tuple[list[SiteRow], list[SiteRow]]:
    """Split off what the map's rows are made of: sites of a layer, and sites of the whole network.

    A site of kind ``layers`` has one unit a layer, so its relevance becomes a column of its own.
    """
    inside = [site for site in sites if site.layer is not None]
    whole = []
    for site in (site for site in sites if site.layer is None):
        if site.kind != "layers" or len(site.relevance) != site.units:
            whole.append(site)
            continue
        for layer, value in enumerate(site.relevance):
            stays = len(site.kept_mask) == site.units and site.kept_mask[layer] > 0
            kept = int(stays) if site.kept_mask else None
            inside.append(
                SiteRow(name=f"layer {layer}", kind="whole layer", layer=layer, units=1, kept=kept,
                        relevance_total=value)
            )  # fmt: skip
    return inside, sorted(whole, key=lambda site: _rank(site.kind))


def site_map(sites: Sequence[SiteRow]) -> Map | None:
    """Return the map of where the information is, or None where no relevance was measured."""
    inside, whole = _layer_cells(sites)
    shown = [*inside, *whole]
    scale = heat(site.relevance_total for site in shown)
    if scale is None:
        return None

    def cell(site: SiteRow) -> Cell:
        return Cell(
            scale.step(site.relevance_total),
            nats(site.relevance_total, unit=False),
            _profile(site.relevance) if len(site.relevance) > 1 else "",
            len(site.relevance) - _gap(len(site.relevance)),
            _tip(site),
        )

    kinds = tuple(sorted({site.kind for site in inside}, key=_rank))
    at = {(site.layer, site.kind): site for site in inside}
    layers = sorted({site.layer for site in inside if site.layer is not None})
    rows = tuple(
        (layer, tuple(cell(at[layer, kind]) if (layer, kind) in at else None for kind in kinds)) for layer in layers
    )
    low, high = scale.scale.low, scale.scale.high
    return Map(
        kinds=kinds,
        before=tuple((site.kind, cell(site)) for site in whole if site.kind not in _LAST),
        layers=rows,
        after=tuple((site.kind, cell(site)) for site in whole if site.kind in _LAST),
        legend=(nats(low, unit=False), nats(scale.middle, unit=False), nats(high)),
        steps=tuple(range(STEPS)),
        log=scale.scale.log,
    )


@dataclass(frozen=True)
class Strip:
    """What stays of a site: bars over its units (their height the share kept) and the counts."""

    kind: str
    path: str
    track: str
    across: float
    count: str
    share: str
    tip: str


@dataclass(frozen=True)
class PlanView:
    """Strips of the whole network's sites, then of each layer's sites."""

    kinds: tuple[str, ...]
    whole: tuple[Strip, ...]
    layers: tuple[tuple[int, tuple[Strip | None, ...]], ...]


def _strip(site: SiteRow, kept: int) -> Strip:
    share = kept / site.units if site.units else 0.0
    if site.kept_mask:
        count = len(site.kept_mask)
        path, track, across = _bars(site.kept_mask), _bars([1.0] * count), count - _gap(count)
    else:
        path, track, across = f"M0 0h{share:.4f}V1H0z", "M0 0h1V1H0z", 1.0
    return Strip(site.kind, path, track, across, f"{kept:,} of {site.units:,}", percent(share), _tip(site))


def plan_view(sites: Sequence[SiteRow]) -> PlanView | None:
    """Return the strips of all sites that a plan was made for, or None where there is no plan."""
    strips = [(site, _strip(site, site.kept)) for site in sites if site.kept is not None]
    if not strips:
        return None
    inside = {(site.layer, site.kind): strip for site, strip in strips if site.layer is not None}
    kinds = tuple(sorted({kind for _, kind in inside}, key=_rank))
    layers = sorted({layer for layer, _ in inside if layer is not None})
    whole = sorted((pair for pair in strips if pair[0].layer is None), key=lambda pair: _rank(pair[0].kind))
    return PlanView(
        kinds,
        tuple(strip for _, strip in whole),
        tuple((layer, tuple(inside.get((layer, kind)) for kind in kinds)) for layer in layers),
    )


@dataclass(frozen=True)
class SiteTable:
    """All figures of the sites; the first column holds names, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def site_table(sites: Sequence[SiteRow]) -> SiteTable | None:
    """Return the table of the sites' figures with the columns for which there is anything to show."""
    if not sites:
        return None
    columns: list[tuple[str, list[str]]] = [
        ("site", [site.name for site in sites]),
        ("units", [f"{site.units:,}" for site in sites]),
    ]
    if any(site.kept is not None for site in sites):
        shares = [site.kept / site.units if site.kept is not None and site.units else None for site in sites]
        columns.append(("kept", [f"{site.kept:,}" if site.kept is not None else NONE for site in sites]))
        columns.append(("share kept", [percent(share) for share in shares]))
    columns.append(("parameters", [si(site.params) for site in sites]))
    columns.append(("MACs", [si(site.macs) for site in sites]))
    for name, values in (
        ("relevance, nats", [site.relevance_total for site in sites]),
        ("predicted distortion, nats", [site.predicted_distortion for site in sites]),
        ("measured distortion, nats", [site.measured_distortion for site in sites]),
    ):
        if any(value is not None for value in values):
            columns.append((name, [nats(value, unit=False) for value in values]))
    return SiteTable(
        tuple(name for name, _ in columns),
        tuple(zip(*(cells for _, cells in columns), strict=True)),
    )
