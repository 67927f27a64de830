"""What a report shows, as plain data: written by the flow, kept as JSON, rendered again at any time."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

#: How many values a strip or profile holds at most; `isthmus.report.bins` brings more units down to this.
BINS = 64

Interval = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    # A loss that diverged is data too: not-a-number is written as a string, so that the file stays strict JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Saving(_Record):
    """One currency: what the original costs and what the narrowed network costs, both measured.

    Parameters
    ----------
    currency : {"params", "bytes", "macs", "latency", "peak", "cache"}
    unit : str
        ``""`` for params and macs, ``"B"`` for bytes and peak memory, ``"ms"`` (or ``"s"``) for latency.
    original, narrowed : float
        Measured, in ``unit``. ``narrowed`` is None where nothing was narrowed (yet).
    predicted : float or None
        What the plan said ``narrowed`` would be.
    limit : float or None
        The budget's limit, as an amount in ``unit``.
    note : str or None
        How it was measured, such as the engine, batch and length.
    """

    currency: Literal["params", "bytes", "macs", "latency", "peak", "cache"]
    unit: str = ""
    original: float
    narrowed: float | None = None
    predicted: float | None = None
    limit: float | None = None
    note: str | None = None


class Quality(_Record):
    """The metric on held-out data. ``relative`` and ``wanted`` (the floor) are shares of the original's value."""

    metric_name: str
    original: float
    narrowed: float | None = None
    relative: float | None = None
    ci95_original: Interval | None = None
    ci95_narrowed: Interval | None = None
    wanted: float | None = None


class SiteRow(_Record):
    """One site: what it costs in the original network, what it carries, and what the plan did to it.

    Parameters
    ----------
    units, kept : int
        Units of the original and units that stay; ``kept`` is None where no plan was made.
    params, macs : float
        What the site costs in the original network.
    relevance_total : float or None
        Nats that would be lost with the whole site.
    relevance : list of float
        Nats per unit in at most 64 bins, in the units' own order.
    kept_mask : list of float
        The share of units kept in at most 64 bins, in the units' own order.
    predicted_distortion, measured_distortion : float or None
        Nats lost by what the plan did to this site alone.
    """

    name: str
    kind: str
    layer: int | None = None
    units: int = Field(ge=0)
    kept: int | None = Field(default=None, ge=0)
    params: float = 0.0
    macs: float = 0.0
    relevance_total: float | None = None
    relevance: list[float] = Field(default=[], max_length=BINS)
    kept_mask: list[Share] = Field(default=[], max_length=BINS)
    predicted_distortion: float | None = None
    measured_distortion: float | None = None


class Distortion(_Record):
    """The loss of the whole plan in nats: as predicted, measured right after the cut, and after recovery."""

    predicted: float | None = None
    measured_before_recovery: float | None = None
    measured_after_recovery: float | None = None


class Curve(_Record):
    """A series over training steps. Curves named ``stage: series`` with one stage and unit share a chart."""

    name: str
    unit: str = ""
    points: list[tuple[float, float]] = []


class Example(_Record):
    """A held-out example (one text or a pair) and what the two networks made of it; ``label`` is the truth."""

    text: str
    text2: str | None = None
    original: float
    narrowed: float
    label: float | None = None


class EngineRow(_Record):
    """Measured latency in one engine at one batch and length: medians in ms with their spread.

    ``of`` says what a batch holds where that is not texts of the length.
    """

    engine: str
    batch: int
    length: int | str
    of: str = ""
    original_ms: float
    narrowed_ms: float | None = None
    spread_original: Interval | None = None
    spread_narrowed: Interval | None = None


class CodeRow(_Record):
    """One coded matrix: its coder, and what it weighs before and after.

    Parameters
    ----------
    parameter : str
        The matrix's full name, such as ``encoder.layer.3.attention.self.query.weight``.
    layer : int or None
        The layer that it belongs to; None for a matrix of the whole network.
    coder : str
        The coder's name.
    bits : float
        Bits a weight as set: before entropy coding, without scales and tables.
    weights : int
        Weights that the code stands for.
    original_bytes, bytes : float
        What the matrix takes in the original network's file, and what its code takes in the narrowed one's.
    predicted_distortion : float or None
        Nats lost by this code alone.
    """

    parameter: str
    layer: int | None = None
    coder: str
    bits: float
    weights: int = Field(ge=0)
    original_bytes: float
    bytes: float
    predicted_distortion: float | None = None


class FrontierPoint(_Record):
    """A plan that the solver found at some size; everything here is predicted.

    Parameters
    ----------
    bytes : float
        The artifact's size.
    distortion : float
        Nats lost by the whole plan.
    params_share : float
        Parameters that stay, as a share of the original's.
    bits : float
        Mean bits a weight, over the matrices that stay.
    kept : dict of str to float
        The share of units that stay, by kind of site.
    coders : dict of str to int
        How many matrices each coder codes.
    """

    bytes: float
    distortion: float
    params_share: float
    bits: float
    kept: dict[str, Share] = {}
    coders: dict[str, Annotated[int, Field(ge=0)]] = {}


class LayerProfile(_Record):
    """One measure of every layer.

    Parameters
    ----------
    name, unit, meaning : str
        What it is called, in what it is given, and what a value says.
    values : list of float or None
        By layer, in the order of ``ReportData.layers``; None where the measure says nothing.
    """

    name: str
    unit: str = ""
    meaning: str = ""
    values: list[float | None] = []


class ReportData(_Record):
    """Everything on a page. What is None or empty is left out of the page."""

    title: str
    kind: Literal["inspect", "narrow"]
    network: str
    task: str
    budget: str | None = None
    metric_name: str | None = None
    command: str | None = None
    created: str
    version: str
    savings: list[Saving] = []
    quality: Quality | None = None
    sites: list[SiteRow] = []
    layers: list[str] = []
    profiles: list[LayerProfile] = []
    distortion: Distortion | None = None
    curves: list[Curve] = []
    examples: list[Example] = []
    engines: list[EngineRow] = []
    codes: list[CodeRow] = []
    frontier: list[FrontierPoint] = []
    record: dict[str, JsonValue] = {}
    warnings: list[str] = []
