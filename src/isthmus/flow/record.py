"""The record and the page: what an artifact says of how it came to be."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from isthmus.cost.examples import macs_of
from isthmus.cost.predict import kept_counts, narrowed_names, parameter_rate, predicted_shapes
from isthmus.cost.rates import Rate, presence
from isthmus.flow.study import Study
from isthmus.plan import Plan
from isthmus.relevance.estimator import Relevance
from isthmus.report import (
    CodeRow,
    Curve,
    Distortion,
    EngineRow,
    Example,
    FrontierPoint,
    Quality,
    ReportData,
    Saving,
    SiteRow,
)
from isthmus.report.bins import binned, kept_shares
from isthmus.sites import Site

PACKAGES = ("isthmus", "torch", "transformers", "tokenizers", "numpy", "openvino", "onnxruntime")
UNITS = {"bytes": "B", "latency": "ms", "peak": "B", "cache": "B"}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine() -> dict[str, Any]:
    """Return what of the machine a timing depends on: processor architecture, vector instructions, threads."""
    capabilities = torch.cpu.get_capabilities()
    vector = sorted(str(name) for name, has in capabilities.items() if has is True)
    return {"architecture": platform.machine(), "instructions": vector, "threads": torch.get_num_threads()}


def now() -> str:
    """Return the date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def owned(rate: Rate, sites: Sequence[Site], site: Site) -> float:
    """Return what a site costs in the whole network: the terms that vanish when nothing of it is left."""
    counts = kept_counts(sites)
    whole = float(rate(counts))
    if site.kind == "layers":
        without = {**counts, **{presence(index): 0.0 for index in range(site.units)}}
    else:
        without = {**counts, site.name: 0.0}
    return whole - float(rate(without))


def site_rows(
    study: Study,
    relevance: Relevance | None,
    plan: Plan | None = None,
    measured: Mapping[str, float] | None = None,
) -> list[SiteRow]:
    """Return one row a site: what it costs, what it carries and what the plan did to it."""
    params, macs = (
        parameter_rate(study.network.model, study.sites),
        macs_of(study.network, study.sites, study.length),
    )
    rows = []
    for site in study.sites:
        nats = None if relevance is None else relevance.nats.get(site.name)
        finite = None if nats is None else np.where(np.isfinite(nats), nats, np.nan)
        decision = None if plan is None else plan.decision(site.name)
        keep = range(site.units) if decision is None else decision.keep
        gone = plan is not None and _layer_gone(site, plan)
        rows.append(
            SiteRow(
                name=site.name,
                kind=site.kind,
                layer=site.layer,
                units=site.units,
                kept=None if plan is None else (0 if gone else len(keep)),
                params=owned(params, study.sites, site),
                macs=owned(macs, study.sites, site),
                relevance_total=None if finite is None else float(np.nansum(finite)),
                relevance=[] if finite is None else binned(np.nan_to_num(finite).tolist()),
                kept_mask=[] if plan is None or gone else kept_shares(keep, site.units),
                predicted_distortion=None if decision is None else decision.distortion,
                measured_distortion=None if measured is None else measured.get(site.name),
            )
        )
    return rows


def _layer_gone(site: Site, plan: Plan) -> bool:
    layers = plan.decision("layers")
    return site.layer is not None and layers is not None and site.layer not in layers.keep


def code_rows(study: Study, plan: Plan) -> list[CodeRow]:
    """Return one row a coded matrix: what it takes, beside what it took in the original."""
    model, kept = study.network.model, {decision.site: decision.keep for decision in plan.decisions}
    shapes = predicted_shapes(model, study.sites, kept)
    original = dict(model.named_parameters())
    before = {after: name for name, after in narrowed_names(original, study.sites, kept).items()}
    rows = []
    for coding in plan.codings:
        whole = original[before[coding.parameter]]
        layer = re.search(r"\.(\d+)\.", coding.parameter)
        rows.append(
            CodeRow(
                parameter=coding.parameter,
                layer=None if layer is None else int(layer[1]),
                coder=coding.coder,
                bits=coding.bits,
                weights=math.prod(shapes[coding.parameter]),
                original_bytes=float(whole.numel() * whole.element_size()),
                bytes=float(coding.bytes),
                predicted_distortion=coding.distortion,
            )
        )
    return rows


def savings(rows: Sequence[Mapping[str, Any]], plan: Plan, limits: Mapping[str, float]) -> list[Saving]:
    """Return what was saved in each currency, measured, beside what the plan predicted and the budget allowed."""
    original, narrowed = rows
    where = f"{original['engine']}, batch {original['batch']}, {original['of']}"
    notes = {"latency": where, "macs": original["macs_of"], "peak": where}
    keys = {"params": "params", "bytes": "bytes", "macs": "macs", "latency": "latency_ms", "peak": "peak_bytes"}
    if "cache_bytes" in original:
        keys["cache"] = "cache_bytes"
        notes["cache"] = f"of {original['cache_tokens']} tokens in bfloat16, allocated"
    return [
        Saving(
            currency=currency,  # type: ignore[arg-type]
            unit=UNITS.get(currency, ""),
            original=float(original[key]),
            narrowed=float(narrowed[key]),
            predicted=plan.predicted.get(currency),
            limit=limits.get(currency),
            note=notes.get(currency),
        )
        for currency, key in keys.items()
    ]


def narrow_page(
    study: Study,
    plan: Plan,
    relevance: Relevance | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    limits: Mapping[str, float],
    distortion: Mapping[str, float],
    measured: Mapping[str, float],
    curves: Sequence[Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    floor: float | None,
    warnings: Sequence[str],
    frontier: Sequence[Mapping[str, Any]] = (),
) -> ReportData:
    """Return the page of a narrowed network."""
    original, narrowed = rows
    return ReportData(
        title=f"{study.network.name}, narrowed",
        kind="narrow",
        network=study.network.name,
        task=study.task.name,
        budget=plan.budget,
        metric_name=original["metric_name"],
        created=str(record["created"]),
        version=version("isthmus"),
        savings=savings(rows, plan, limits),
        quality=Quality(
            metric_name=original["metric_name"],
            original=original["metric"],
            narrowed=narrowed["metric"],
            relative=narrowed["relative"],
            ci95_original=tuple(original["ci95"]),
            ci95_narrowed=tuple(narrowed["ci95"]),
            wanted=floor,
        ),
        sites=site_rows(study, relevance, plan, measured),
        codes=code_rows(study, plan),
        frontier=[FrontierPoint(**point) for point in frontier],
        distortion=Distortion(**distortion),
        curves=[Curve(**curve) for curve in curves],
        examples=[Example(**example) for example in examples],
        engines=[
            EngineRow(
                engine=original["engine"],
                batch=original["batch"],
                length=f"{original['length']:.0f}",
                of=original["of"] if study.network.images is not None else "",
                original_ms=original["latency_ms"],
                narrowed_ms=narrowed["latency_ms"],
                spread_original=tuple(original["latency_spread"]),
                spread_narrowed=tuple(narrowed["latency_spread"]),
            )
        ],
        record=_short(record),
        warnings=list(warnings),
    )


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of the page what it shows elsewhere, or what would fill it (the indices of kept units)."""
    left = {name: value for name, value in record.items() if name not in ("plan", "curves", "files", "digest")}
    plan = record["plan"]
    left["plan"] = {name: value for name, value in plan.items() if name not in ("decisions", "codings")}
    return left
