"""Joint plans: a budget of bytes met by taking units away and by coding what stays, decided together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isthmus.allocation.joint import Joint, choose, search
from isthmus.bottlenecks.curves import Curves
from isthmus.bottlenecks.registry import coder
from isthmus.budget import Budget
from isthmus.cost.predict import kept_counts, parameter_rate
from isthmus.errors import UnreachableBudget
from isthmus.flow.coding import (
    PRICES,
    JointProblem,
    codings_of,
    curves_of,
    file_bytes,
    fit_settings,
    frontier_of,
    share_left,
    student_statistics,
)
from isthmus.flow.planning import Planned, as_plan, estimate, flat_relevance
from isthmus.flow.study import Study, cut, limits_of, original_rates, rates_for
from isthmus.flow.together import from_main
from isthmus.plan import Coding
from isthmus.progress import Progress, silent
from isthmus.relevance.estimator import Relevance
from isthmus.sites import Site

NEGLIGIBLE = 0.02
"""Nats: where coding alone is predicted to lose no more than this, nothing is taken away."""
TYPICAL_BITS = 2.5
FITS, LESS = 6, 0.97
SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.7


def make_joint_plan(
    study: Study,
    budget: Budget,
    *,
    method: str,
    effort: str,
    codes: Sequence[str],
    curves: Curves | None = None,
    progress: Progress = silent,
) -> Planned:
    """Decide what stays and how it is coded so that all limits hold with the least predicted distortion.

    Parameters
    ----------
    codes : sequence of str
        The coders to choose from.
    curves : mapping, optional
        What they save and lose on each matrix of the original, where it has been measured already.

    Raises
    ------
    BadInput
        If a coder is unknown.
    BadBudget, UnreachableBudget
        If the budget is above what the original costs, or below what any plan reaches.
    """
    for name in codes:
        coder(name)
    rates = from_main(lambda: rates_for(study, budget.currencies, progress))
    original = original_rates(study, rates)
    limits = limits_of(budget, original)
    if curves is None:
        curves = from_main(lambda: curves_of(study, codes, progress))
    relevance = Relevance(method, flat_relevance(study))
    problem = JointProblem(study, relevance.nats, curves, rates, limits, original)
    # An unreachable budget is refused before any time is spent on relevance.
    joint, _ = from_main(lambda: search(problem.at, PRICES))
    alone = _codes_alone(study, curves, limits["bytes"])
    if study.sites and (alone > NEGLIGIBLE or len(limits) > 1):
        share = _share(study, limits["bytes"])
        params = rates_for(study, ["params"])
        whole = original_rates(study, params)
        asked = (params, {"params": share * whole["params"]}, whole)
        relevance = from_main(lambda: estimate(study, method, budget=asked, effort=effort, progress=progress))
        problem = replace(problem, nats=relevance.nats)
    else:  # nothing needs to go
        problem = replace(problem, nats={name: np.full(len(nats), 1e3) for name, nats in relevance.nats.items()})
        relevance = Relevance(method, {})
    progress("allocate", 0, 1)
    joint, codings, size = from_main(lambda: _fitted(problem, progress))
    frontier = from_main(lambda: frontier_of(problem, joint))
    progress("allocate", 1, 1)
    plan = as_plan(study, budget, method, joint.allocation, rates, relevance, (), original)
    lost = plan.distortion + sum(coding.distortion for coding in codings)
    predicted = {**plan.predicted, "bytes": float(size)}
    plan = plan.model_copy(update={"codings": codings, "predicted": predicted, "distortion": lost})
    return Planned(plan, relevance, tuple(_point(problem, one) for one in frontier))


def _fitted(problem: JointProblem, progress: Progress) -> tuple[Joint, tuple[Coding, ...], int]:
    """Return the joint allocation, its codes fitted to the very weights that stay, and the bytes of the file.

    Where no coder takes any number of bits, a file that is too large is planned again with that much less.
    """
    study, limit = problem.study, problem.limits["bytes"]
    aimed = problem
    for attempt in range(FITS):
        joint, _ = search(aimed.at, PRICES)
        student = cut(study, joint.allocation.kept)
        codings = codings_of(study, joint)
        statistics = student_statistics(study, student, codings, progress)
        try:
            codes, fitted = fit_settings(student, codings, statistics, limit, seed=study.seed, progress=progress)
        except UnreachableBudget:
            if attempt == FITS - 1:
                raise
            aimed = replace(aimed, limits={**aimed.limits, "bytes": aimed.limits["bytes"] * LESS})
        else:
            break
    return joint, fitted, file_bytes(student, codes)


def _point(problem: JointProblem, joint: Joint) -> dict[str, Any]:
    """Return a joint allocation as a point of the frontier, as the report shows it."""
    sites = problem.study.sites
    kept = joint.allocation.kept
    counts: dict[str, list[int]] = {}
    gone = {site.name for site in sites if _gone(site, sites, kept)}
    for site in sites:
        own = counts.setdefault(site.kind, [0, 0])
        own[0] += 0 if site.name in gone else len(kept.get(site.name, range(site.units)))
        own[1] += site.units
    left = share_left(problem.study, problem.entries, kept)
    weights = {name: left[name] * count for name, count in problem.entries.items()}
    coded = sum(weights[name] * one.bits for name, one in joint.chosen.items())
    coders = Counter(one.coder for name, one in joint.chosen.items() if weights[name])
    params = parameter_rate(problem.study.network.model, sites)
    return {
        "bytes": joint.bytes,
        "distortion": joint.distortion,
        "params_share": float(params(kept_counts(sites, kept)) / params(kept_counts(sites))),
        "bits": coded / max(sum(weights.values()), 1.0),
        "kept": {kind: stays / whole for kind, (stays, whole) in counts.items()},
        "coders": dict(coders),
    }


def _gone(site: Site, sites: Sequence[Site], kept: Mapping[str, Sequence[int]]) -> bool:
    """Return whether a site lies in a layer that goes."""
    layers = next((one for one in sites if one.kind == "layers"), None)
    return (
        layers is not None and site.layer is not None and site.layer not in kept.get(layers.name, range(layers.units))
    )


def _codes_alone(study: Study, curves: Curves, limit: float) -> float:
    """Return the nats that are lost where nothing is taken away and codes alone meet the limit; infinite if none do."""
    entries = {name: float(study.network.model.get_parameter(name).numel()) for name in curves}
    rest = sum(parameter.numel() for parameter in study.network.model.parameters()) - sum(entries.values())
    for price in PRICES:
        chosen = choose(curves, entries, price)
        if 2 * rest + sum(entries[name] * one.bits / 8 for name, one in chosen.items()) <= limit:
            return sum(one.nats for one in chosen.values())
    return math.inf


def _share(study: Study, limit: float) -> float:
    """Return the share of parameters that gates are trained towards: what fits at a typical number of bits."""
    whole = sum(parameter.numel() for parameter in study.network.model.parameters())
    return float(min(max(8 * limit / TYPICAL_BITS / whole, SMALLEST_SHARE), LARGEST_SHARE))
