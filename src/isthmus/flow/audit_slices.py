"""The slices of an audit: what can be said of the examples, and what narrowing did to those that share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isthmus.audit.amplification import measure_amplification
from isthmus.audit.checks import Array
from isthmus.audit.damage import measure_damage
from isthmus.audit.discovery import discover_slices
from isthmus.audit.exemplars import disagreement
from isthmus.audit.imagecolumns import image_columns, likeness_columns, place_columns
from isthmus.audit.reading import Reading, passages
from isthmus.audit.slices import Column, slices_of
from isthmus.audit.textcolumns import text_columns, word_columns
from isthmus.examples import Example, texts_of
from isthmus.flow.audit_parts import Population


@dataclass
class Found:
    """What is gathered as parts are measured."""

    fields: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def measure_slices(
    found: Found,
    reading: Reading,
    before: Population,
    after: Population,
    given: tuple[()] | tuple[tuple[Column, ...], tuple[str, ...]],
    called: Mapping[Example, str],
    seed: int,
) -> None:
    """Measure damage and disagreement by slice, amplification, and what a search finds; add them to what was found."""
    columns: list[Column] = []
    if reading.labels is not None:
        columns.append(Column("class", tuple(reading.class_names[label] for label in reading.labels.tolist())))
    if given:
        columns += given[0]
        found.warnings += given[1]
    count = len(reading.examples)
    _, warnings = slices_of(columns, count)
    found.warnings += warnings
    described, more = _described(reading, before.heads[0].features, called, seed)
    # What these examples have none of makes no slice; of columns that nobody asked for that goes without saying.
    shown, _ = slices_of([*columns, *described], count)
    searched, _ = slices_of([*columns, *described, *more], count)
    found.fields["damage"] = measure_damage(before.losses, after.losses, shown, seed=seed)
    apart = disagreement(before.probabilities, after.probabilities)
    found.fields["disagreement"] = measure_damage(np.zeros(count), apart, shown, seed=seed)
    found.fields["amplification"] = measure_amplification(before.losses, after.losses, shown, seed=seed)
    found.fields["discovered"] = discover_slices(before.losses, after.losses, searched, seed=seed)


def _described(
    reading: Reading, features: Array, called: Mapping[Example, str], seed: int
) -> tuple[tuple[Column, ...], tuple[Column, ...]]:
    """Return what can be said of the examples, and what more is searched."""
    images = reading.images
    if not images:
        texts = [texts_of(example, "audit") for example in reading.examples]
        return text_columns(texts, texts_of(reading.task.train, "audit")), word_columns(texts)
    place = {one: index for index, one in enumerate(passages(reading))}
    own = features[[place[image] for image in images]]
    like = likeness_columns(own, [called[image] for image in images], seed=seed)
    return image_columns(images), (*place_columns(images), *like)
