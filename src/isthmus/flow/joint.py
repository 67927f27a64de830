"""Joint plans: a budget of bytes met by taking units away and by coding what stays, decided together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from isthmus.relevance.probe import measure_network
from isthmus.sites import Site
from isthmus.storage.holders import with_codes

NEGLIGIBLE = 0.02
"""Nats: where coding alone is predicted to lose no more than this, nothing is taken away."""
TYPICAL_BITS = 2.5
FITS, LESS = 6, 0.97
ADDS_UP, MOST_CORRECTION = 0.1, 4.0
"""Nats are corrected where they add up to a tenth more or less than was predicted, by this factor at most."""
NEARLY = 1.25
"""A plan with one coder alone is measured too if it is predicted to lose at most so many times what the mixed does."""
UNSEEN = 1e-3
"""Nats that cannot be told from none."""
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
    from_main(lambda: search(problem.at, PRICES))
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
    problem, fitted, notes = from_main(lambda: _with_one_coder(*_corrected(problem, progress), progress))
    frontier = from_main(lambda: frontier_of(problem, fitted.joint))
    progress("allocate", 1, 1)
    plan = as_plan(study, budget, method, fitted.joint.allocation, rates, relevance, notes, original)
    predicted = {**plan.predicted, "bytes": float(fitted.bytes)}
    lost = sum(fitted.predicted)
    plan = plan.model_copy(update={"codings": fitted.codings, "predicted": predicted, "distortion": lost})
    return Planned(plan, relevance, tuple(_point(problem, one) for one in frontier))


@dataclass(frozen=True)
class Fitted:
    """A joint allocation with codes fitted to the very weights that stay.

    Parameters
    ----------
    bytes : int
        Of the file.
    predicted, measured : tuple of float
        Nats that the units take with them, and those that the codes of what stays add.
    """

    joint: Joint
    codings: tuple[Coding, ...]
    bytes: int
    predicted: tuple[float, float]
    measured: tuple[float, float]


def _corrected(problem: JointProblem, progress: Progress) -> tuple[JointProblem, Fitted, list[str]]:
    """Plan, measure what was planned, and plan again with nats that add up to what was measured.

    Every unit and every code is measured with all else as it was; together they lose more, and units not by the same
    factor as codes. Whichever plan is measured to lose less is kept.
    """
    first = _fitted(problem, progress)
    notes = [_note("as measured one by one", first)]
    factors = [
        float(np.clip(found / wanted, 1 / MOST_CORRECTION, MOST_CORRECTION)) if min(found, wanted) > UNSEEN else 1.0
        for found, wanted in zip(first.measured, first.predicted, strict=True)
    ]
    if not first.predicted[0] or max(abs(np.log(factors))) < np.log(1 + ADDS_UP):
        return problem, first, notes
    scaled = replace(
        problem,
        nats={name: nats * factors[0] for name, nats in problem.nats.items()},
        curves={
            name: tuple(replace(one, nats=one.nats * factors[1]) for one in candidates)
            for name, candidates in problem.curves.items()
        },
    )
    second = _fitted(scaled, progress)
    notes.append(_note(f"units counted {factors[0]:.2f} times and codes {factors[1]:.2f} times", second))
    if sum(second.measured) < sum(first.measured):
        return scaled, second, notes
    return problem, first, [*notes, "the first was kept"]


def _with_one_coder(
    problem: JointProblem, fitted: Fitted, notes: list[str], progress: Progress
) -> tuple[JointProblem, Fitted, list[str]]:
    """Return the plan with one coder alone where that is measured to lose less than the one that mixes them.

    Curves of several coders are compared matrix by matrix, and the least of several measurements is a little lucky.
    """
    coders = sorted({coding.coder for coding in fitted.codings})
    for name in coders if len(coders) > 1 else []:
        curves = {
            matrix: own
            for matrix, candidates in problem.curves.items()
            if (own := tuple(one for one in candidates if one.coder == name))
        }
        if len(curves) < len(problem.curves):
            continue
        alone = replace(problem, curves=curves)
        try:
            predicted, _ = search(alone.at, PRICES)
            if predicted.distortion > NEARLY * fitted.joint.distortion:
                continue
            tried = _fitted(alone, progress)
        except UnreachableBudget:
            continue
        notes = [*notes, _note(f"with {name} alone", tried)]
        if sum(tried.measured) < sum(fitted.measured):
            fitted = tried
        else:
            notes.append("the one before was kept")
    return problem, fitted, notes


def _note(how: str, fitted: Fitted) -> str:
    (units, codes), (units_, codes_) = fitted.predicted, fitted.measured
    return (
        f"joint plan, {how}: {units:.3f} nats predicted of units and {codes:.3f} of codes, "
        f"{units_:.3f} and {codes_:.3f} measured together"
    )


def _fitted(problem: JointProblem, progress: Progress) -> Fitted:
    """Return the joint allocation, its codes fitted to the very weights that stay, and what it loses.

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
    cut_lost = measure_network(study.probe, student) if joint.allocation.kept else 0.0
    lost = measure_network(study.probe, with_codes(student, codes))
    predicted = sum(joint.allocation.distortion.values()), sum(coding.distortion for coding in fitted)
    return Fitted(joint, fitted, file_bytes(student, codes), predicted, (cut_lost, max(lost - cut_lost, 0.0)))


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
