"""Calibration: turn any score into nats by measuring what closing units really costs.

A score that only ranks units (a magnitude, say) cannot be weighed against that of another site. Here every site is
closed in steps, least relevant units first, and the divergence from the original is measured at each; the units of
a step share what it cost in proportion to their scores. Sums over removed units then equal measured nats at the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch

from isthmus.examples import Example, texts_of
from isthmus.memory import give_back
from isthmus.progress import Progress, silent
from isthmus.relevance.probe import Probe, gated_sites, measure_closed, measure_vocabulary
from isthmus.relevance.readers import Reader
from isthmus.relevance.resuming import Resuming
from isthmus.sites import VOCABULARY, Site

Scores = npt.NDArray[np.float64]
STEPS = (0.25, 0.5, 0.75, 1.0)
VOCABULARY_STEPS = (0.3, 0.6, 0.8, 0.9, 0.95, 1.0)


def spread(scores: Scores, closed: Sequence[int], measured: Sequence[float], fixed: Sequence[int] = ()) -> Scores:
    """Distribute measured nats over units.

    Parameters
    ----------
    scores : ndarray, shape ``(units,)``
        Not negative; more is more relevant.
    closed : sequence of int
        Rising numbers of closed units at which divergence was measured.
    measured : sequence of float
        The divergence at each, in nats.
    fixed : sequence of int
        Units that cannot be closed; their relevance is infinite.

    Returns
    -------
    ndarray, shape ``(units,)``
        Summing all that were closed gives the last of ``measured``, and the ``closed[i]`` smallest ``measured[i]``
        where that keeps the order; else less: isotonic regression shares what came too early among those that follow.
    """
    from scipy.optimize import isotonic_regression

    order = removal_order(scores, fixed)
    nats = np.full(len(scores), np.inf)
    previous_count, previous = 0, 0.0
    for count, value in zip(closed, np.maximum.accumulate(np.asarray(measured, dtype=float)), strict=True):
        units = order[previous_count:count]
        if len(units) == 0:
            continue
        share = scores[units] + 1e-12 * (1 + scores[units].max())
        nats[units] = (value - previous) * share / share.sum()
        previous_count, previous = count, float(value)
    # A later step may cost less a unit than an earlier one (noise, saturation): the order must still hold, and the sum.
    known = order[:previous_count]
    nats[known] = isotonic_regression(nats[known]).x if len(known) else nats[known]
    rest = order[previous_count:]
    slope = float(nats[known].max(initial=0.0))
    nats[rest] = np.maximum(slope, 1e-9) * (1 + scores[rest] / max(float(scores.max()), 1e-30))
    return nats


def removal_order(scores: Scores, fixed: Sequence[int] = ()) -> npt.NDArray[np.int64]:
    """Return the units that may go, least relevant first; among equals the later one goes first."""
    free = np.setdiff1d(np.arange(len(scores)), np.asarray(fixed, dtype=int))[::-1]
    return free[np.argsort(scores[free], kind="stable")]


def to_nats(
    probe: Probe,
    sites: Sequence[Site],
    scores: Mapping[str, Scores],
    *,
    readers: Mapping[str, Reader] | None = None,
    progress: Progress = silent,
) -> dict[str, Scores]:
    """Turn scores into nats, site by site.

    Parameters
    ----------
    scores : mapping of str to ndarray
        For every gated site, shape ``(units,)``, not negative.
    readers : mapping of str to Reader, optional
        What is solved anew, of the probe's network, as units of a site close.

    Returns
    -------
    dict of str to ndarray
        Relevance in nats, shape ``(units,)``.
    """
    nats: dict[str, Scores] = {}
    chosen = gated_sites(sites)
    with Resuming(probe, tuple(sites), estimate=True) as resuming:
        for number, site in enumerate(sorted(chosen, key=lambda site: site.layer or 0)):
            resuming.start_for(site)
            if site.kind == "layers":
                nats[site.name] = _layers(probe, site)
            else:
                nats[site.name] = _closed_in_steps(
                    probe, site, scores[site.name], None if readers is None else readers.get(site.name)
                )
            give_back()
            progress("calibrate", number + 1, len(chosen))
    return {site.name: nats[site.name] for site in chosen}


def _closed_in_steps(probe: Probe, site: Site, scores: Scores, reader: Reader | None = None) -> Scores:
    """Close a site step by step, measure, and share what it costs among the units of a step."""
    order = removal_order(scores, site.fixed)
    most = min(len(order), site.units - site.minimum)
    closed = sorted({max(1, round(share * most)) for share in STEPS}) if most else []
    measured = []
    for count in closed:
        value = torch.ones(site.units)
        value[torch.as_tensor(order[:count].copy())] = 0
        with nullcontext() if reader is None else reader.closed(order[:count].tolist()):
            measured.append(measure_closed(probe, [site], {site.name: value}, estimate=True))
    return spread(scores, closed, measured, site.fixed)


def _layers(probe: Probe, site: Site) -> Scores:
    """Measure each layer by passing it by: there are few, so nothing needs to be estimated."""
    nats = np.zeros(site.units)
    for index in range(site.units):
        value = torch.ones(site.units)
        value[index] = 0
        nats[index] = measure_closed(probe, [site], {site.name: value}, estimate=True)
    return nats


def vocabulary_relevance(probe: Probe, sites: Sequence[Site], examples: Sequence[Example]) -> Scores:
    """Return the relevance of every token, in nats, shape ``(tokens,)``; empty without a vocabulary site.

    Tokens are ranked by how often they occur in the examples; what a step costs is measured on the probe's texts, where
    removed words fall back to pieces.
    """
    from isthmus.sites.vocabulary import token_relevance

    site = next((site for site in sites if site.name == VOCABULARY), None)
    if site is None:
        return np.zeros(0)
    tokenizer = probe.network.tokenizer
    texts = texts_of(examples, "vocabulary")
    counts = np.zeros(site.units)
    for start in range(0, len(texts), 1024):
        for ids in tokenizer(list(texts[start : start + 1024]), add_special_tokens=False)["input_ids"]:
            np.add.at(counts, np.asarray(ids, dtype=int), 1)
    scores = np.asarray(token_relevance(tokenizer, counts), dtype=float)
    order = removal_order(scores, site.fixed)
    closed = sorted({max(1, round(share * len(order))) for share in VOCABULARY_STEPS}) if len(order) else []
    measured = []
    for count in closed:
        keep = np.setdiff1d(np.arange(site.units), order[:count])
        measured.append(measure_vocabulary(probe, keep.tolist(), estimate=True))
    return spread(scores, closed, measured, site.fixed)
