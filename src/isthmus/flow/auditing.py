"""Audit: what narrowing took away, measured on what the task holds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.audit.calibration import measure_calibration
from isthmus.audit.checks import Array
from isthmus.audit.exemplars import find_exemplars
from isthmus.audit.givens import read_columns
from isthmus.audit.neighbours import measure_neighbours
from isthmus.audit.readers import Head, Readout, fit_head
from isthmus.audit.reading import Reading, names_of, read_task
from isthmus.audit.resampling import damage_draws, percentile
from isthmus.audit.selective import measure_selective
from isthmus.audit.slices import Column
from isthmus.errors import BadInput, unknown
from isthmus.examples import Example
from isthmus.flow import record as records
from isthmus.flow.audit_parts import Population, measure_corruptions, measure_positions, read_transfer
from isthmus.flow.audit_slices import Found, measure_slices
from isthmus.flow.suiting import check_suits
from isthmus.flow.verifying import bytes_on_disk, check_labels
from isthmus.network import Network
from isthmus.progress import Progress
from isthmus.report.auditdata import AuditData, AuditedNetwork
from isthmus.report.pictures import picture
from isthmus.tasks import Task

PARTS = ("exemplars", "slices", "robustness", "calibration", "selective", "neighbours", "position", "transfer")


def chosen_parts(spec: str) -> tuple[str, ...]:
    """Return the parts that a string such as ``exemplars,slices`` names; ``all`` names all.

    Raises
    ------
    BadInput
        If one is unknown.
    """
    names = tuple(dict.fromkeys(name.strip() for name in spec.split(",") if name.strip()))
    if names == ("all",):
        return PARTS
    for name in names:
        if name not in PARTS:
            raise unknown("part", name, PARTS)
    if not names:
        raise BadInput(f"no parts to audit; give some of {', '.join(PARTS)}, or all")
    return names


def audit_networks(
    originals: Sequence[Network],
    narrowed: Sequence[Network],
    task: Task,
    *,
    slices: Path | None,
    transfer: Sequence[Task],
    parts: Sequence[str],
    seed: int,
    progress: Progress,
) -> AuditData:
    """Return all that an audit found; see ``isthmus.audit``."""
    networks = [*originals, *narrowed]
    names = [network.name for network in networks]
    if len(set(names)) != len(names):
        raise BadInput(f"audit: two networks are called {max(names, key=names.count)}; give different folders")
    reading = read_task(task, seed=seed)
    given = () if slices is None else _given(slices, reading)
    found = Found(warnings=list(reading.warnings))
    for network in networks:
        found.warnings += check_suits(network, task)
        if network.pooling == "logits":
            check_labels(network, task)
    before, after = _read(originals, narrowed, reading, seed, progress)
    called = names_of(reading)
    if task.kind == "sts" and not task.pairs:
        found.warnings.append(
            f"{task.name}: no training pairs, so the probabilities of levels were fitted on the audited pairs: "
            "calibration looks better than it is"
        )
    if "exemplars" in parts:
        found.fields["exemplars"] = find_exemplars(
            before.probabilities,
            after.probabilities,
            reading.labels,
            texts=[[called[one] for one in example] for example in reading.examples],
            class_names=reading.class_names,
            seed=seed,
        )
    if "slices" in parts:
        progress("slices", 0, 1)
        measure_slices(found, reading, before, after, given, called, seed)
        progress("slices", 1, 1)
    if "robustness" in parts:
        found.fields["robustness"] = measure_corruptions(reading, before, after, seed, progress)
    _certainty(found, parts, reading, (*before.readouts, *after.readouts), names, seed)
    if "neighbours" in parts:
        origin, shown = before.heads[0].features, list(called.values())
        found.fields["neighbours"] = [
            measure_neighbours(origin, head.features, shown, name=head.network.name, seed=seed) for head in after.heads
        ]
    if "position" in parts:
        found.fields["position"], said = measure_positions(reading, before, after, seed, progress)
        found.warnings += said
    scores = [1 - float(loss.mean()) for loss in (*before.losses, *after.losses)]
    if "transfer" in parts and transfer:
        found.fields["transfer"] = read_transfer(networks, transfer, scores, seed, progress)
    return AuditData(
        title=f"{', '.join(network.name for network in narrowed)} against {originals[0].name}",
        task=task.name,
        loss_name=reading.loss_name,
        examples=len(reading.examples),
        classes=len(reading.class_names),
        created=records.now(),
        version=version("isthmus"),
        networks=[
            _network(network, loss, number < len(originals), seed)
            for number, (network, loss) in enumerate(zip(networks, (*before.losses, *after.losses), strict=True))
        ],
        **found.fields,
        pictures=_pictures(reading, called, found.fields),
        warnings=_all_warnings(found),
        record={
            "seed": seed,
            "parts": list(parts),
            "task": {"name": task.name, "fingerprint": task.fingerprint},
            "versions": records.versions(),  # type: ignore[dict-item]
            "machine": records.machine(),
        },
    )


def _given(path: Path, reading: Reading) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    return read_columns(path, reading.examples)


def _network(network: Network, loss: Array, original: bool, seed: int) -> AuditedNetwork:
    none = np.zeros((0, len(loss)), dtype=bool)
    drawn, _ = damage_draws(np.zeros((1, len(loss))), loss[None], none, seed, 1000)
    return AuditedNetwork(
        name=network.name,
        original=original,
        params=sum(parameter.numel() for parameter in network.model.parameters()),
        bytes=bytes_on_disk(network),
        loss=percentile(float(loss.mean()), drawn, len(loss)),
    )


def _read(
    originals: Sequence[Network], narrowed: Sequence[Network], reading: Reading, seed: int, progress: Progress
) -> tuple[Population, Population]:
    """Read every network on the clean examples."""
    heads: list[Head] = []
    readouts: list[Readout] = []
    everything = np.arange(len(reading.examples))
    total = len(originals) + len(narrowed)
    for number, network in enumerate([*originals, *narrowed]):
        progress("read", number, total, network.name)
        reference = readouts[0].probabilities if readouts and reading.labels is None else None
        heads.append(fit_head(network, reading, reference, seed=seed))
        readouts.append(heads[-1].read(reading.examples, everything))
    progress("read", total, total)
    first = len(originals)
    return (
        Population(tuple(heads[:first]), tuple(readouts[:first])),
        Population(tuple(heads[first:]), tuple(readouts[first:])),
    )


def _pictures(reading: Reading, called: Mapping[Example, str], fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the images that the page shows, by what they are called."""
    if not reading.images:
        return {}
    wanted: set[str] = set()
    if (exemplars := fields.get("exemplars")) is not None:
        wanted |= {row.text for row in exemplars.rows}
    for one in fields.get("neighbours", []):
        wanted |= {name for row in one.rows for name in (row.text, row.before[0], row.after[0])}
    if (discovered := fields.get("discovered")) is not None:
        names = " ".join(discovered.names)
        wanted |= {name for name in called.values() if f"like {name}" in names}
    return {name: picture(image) for image, name in called.items() if name in wanted}


def _certainty(
    found: Found,
    parts: Sequence[str],
    reading: Reading,
    readouts: Sequence[Readout],
    names: Sequence[str],
    seed: int,
) -> None:
    """Measure calibration and selective accuracy, which need to know what is right."""
    if reading.labels is None:
        return
    if "calibration" in parts:
        found.fields["calibration"] = [
            measure_calibration(readout.probabilities, reading.labels, name=name, seed=seed)
            for name, readout in zip(names, readouts, strict=True)
        ]
    if "selective" in parts:
        found.fields["selective"] = [
            measure_selective(
                readout.probabilities.max(axis=1),
                readout.probabilities.argmax(axis=1) != reading.labels,
                name=name,
                seed=seed,
            )
            for name, readout in zip(names, readouts, strict=True)
        ]


def _all_warnings(found: Found) -> list[str]:
    """Return every warning once, those of the reading first."""
    said = list(found.warnings)
    for name, value in found.fields.items():
        for one in value if isinstance(value, list) else [value]:
            said += [f"{name}: {warning}" for warning in one.warnings]
    return list(dict.fromkeys(said))
