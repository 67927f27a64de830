"""Inspect: measure where cost and information are, without changing anything."""

from __future__ import annotations

from importlib.metadata import version

from isthmus.flow import record as records
from isthmus.flow.layers import MEASURES, measure_layers
from isthmus.flow.planning import estimate
from isthmus.flow.study import original_rates, rates_for, start_study
from isthmus.flow.verifying import bytes_on_disk, measure_quality
from isthmus.network import Network
from isthmus.progress import Progress
from isthmus.relevance.estimator import Relevance
from isthmus.report import Curve, LayerProfile, Quality, ReportData, Saving
from isthmus.tasks import Task


def inspect_network(
    network: Network, task: Task, *, method: str, seed: int, progress: Progress
) -> tuple[Relevance, ReportData]:
    """Return the relevance of every unit and the page that shows it; see ``isthmus.inspect``."""
    study = start_study(network, task, seed=seed)
    relevance = estimate(study, method, effort="faster", progress=progress)
    original = original_rates(study, rates_for(study, ["params", "macs"]))
    original["bytes"] = float(bytes_on_disk(network))
    layers = measure_layers(study, progress)
    metric = measure_quality([network], task, seed=seed, progress=progress)[0]
    created = records.now()
    page = ReportData(
        title=f"{network.name}, inspected",
        kind="inspect",
        network=network.name,
        task=task.name,
        metric_name=metric.name,
        created=created,
        version=version("isthmus"),
        savings=[
            Saving(currency="params", original=original["params"]),
            Saving(currency="bytes", unit="B", original=original["bytes"]),
            Saving(currency="macs", original=original["macs"], note=study.one),
        ],
        quality=Quality(metric_name=metric.name, original=metric.value, ci95_original=metric.ci95),
        sites=records.site_rows(study, relevance),
        layers=[layer.name for layer in layers],
        profiles=[
            LayerProfile(
                name=measure.name,
                unit=measure.unit,
                meaning=measure.meaning,
                values=[layer.values.get(measure.name) for layer in layers],
            )
            for measure in MEASURES
        ],
        curves=[Curve(name=c.name, unit=c.unit, points=list(c.points)) for c in relevance.curves],
        warnings=list(study.notes),
        record={
            "method": method,
            "seed": seed,
            "task": {"name": task.name, "fingerprint": task.fingerprint},
            "versions": records.versions(),  # type: ignore[dict-item]
            "machine": records.machine(),
        },
    )
    return relevance, page
