"""Joint plans: a budget of bytes met by taking units away and by coding what stays, decided together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isthmus.allocation.joint import Joint, choose
from isthmus.allocation.problem import Allocation
from isthmus.bottlenecks.curves import Curves
from isthmus.bottlenecks.registry import coder
from isthmus.budget import Budget
from isthmus.flow.coding import (
    PRICES,
    codings_of,
    curves_of,
    file_bytes,
    fit_settings,
    joint_plan,
    student_statistics,
)
from isthmus.flow.planning import Planned, as_plan, estimate, flat_relevance
from isthmus.flow.study import Study, cut, limits_of, original_rates, rates_for
from isthmus.flow.together import from_main
from isthmus.plan import Coding
from isthmus.progress import Progress, silent
from isthmus.relevance.estimator import Relevance

NEGLIGIBLE = 0.02
"""Nats: where coding alone is predicted to lose no more than this, nothing is taken away."""
TYPICAL_BITS = 2.5
SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.7


def make_joint_plan(
    study: Study, budget: Budget, *, method: str, effort: str, codes: Sequence[str], progress: Progress = silent
) -> Planned:
    """Decide what stays and how it is coded so that all limits hold with the least predicted distortion.

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
    curves: Curves = from_main(lambda: curves_of(study, codes, progress))
    flat = Relevance(method, flat_relevance(study))
    relevance = flat
    # An unreachable budget is refused before any time is spent on relevance.
    joint, _ = from_main(lambda: joint_plan(study, flat.nats, curves, rates, limits, original))
    alone = _codes_alone(study, curves, limits["bytes"])
    if alone > NEGLIGIBLE or len(limits) > 1:
        share = _share(study, limits["bytes"])
        half = rates_for(study, ["params"])
        whole = original_rates(study, half)
        asked = (half, {"params": share * whole["params"]}, whole)
        relevance = from_main(lambda: estimate(study, method, budget=asked, effort=effort, progress=progress))
        progress("allocate", 0, 1)
        joint, _ = from_main(lambda: joint_plan(study, relevance.nats, curves, rates, limits, original))
        progress("allocate", 1, 1)
    else:
        joint = Joint(joint.price, Allocation({}, {}, {}), joint.chosen, alone, joint.bytes)
    plan = as_plan(study, budget, method, joint.allocation, rates, relevance, ())
    student = cut(study, joint.allocation.kept)
    codings = codings_of(study, joint)

    def fit() -> tuple[tuple[Coding, ...], int]:
        statistics = student_statistics(study, student, codings, progress)
        made, fitted = fit_settings(student, codings, statistics, limits["bytes"], seed=study.seed, progress=progress)
        return fitted, file_bytes(student, made)

    fitted, size = from_main(fit)
    lost = plan.distortion + sum(coding.distortion for coding in fitted)
    predicted = {**plan.predicted, "bytes": float(size)}
    return Planned(plan.model_copy(update={"codings": fitted, "predicted": predicted, "distortion": lost}), relevance)


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
