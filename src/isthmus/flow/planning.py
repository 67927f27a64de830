"""Plan: relevance, then allocation; decided and readable before anything is touched."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.allocation.problem import Allocation, Problem
from isthmus.allocation.solver import allocate
from isthmus.budget import Budget, parse_budget
from isthmus.cost.predict import kept_counts, predicted_shapes
from isthmus.cost.rates import Rate, rescale
from isthmus.errors import BadInput
from isthmus.export.quantized import FLOAT, export_quantized
from isthmus.export.timing import time_exported
from isthmus.flow.caching import CACHE, check_keeps_cache, full_bytes, limit_of, rest_of, whole_plan
from isthmus.flow.study import Study, cut, held_out_batches, limits_of, original_rates, rates_for
from isthmus.flow.together import from_main
from isthmus.network import Network
from isthmus.plan import Decision, Plan
from isthmus.progress import Progress, silent
from isthmus.relevance.calibrate import to_nats, vocabulary_relevance
from isthmus.relevance.estimator import LASTING, Calibration, Relevance
from isthmus.relevance.registry import get
from isthmus.relevance.statistics import Statistics, collect
from isthmus.sites import VOCABULARY, check_kept
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.weights import predicted_bytes, saved_shapes

Relevances = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]

LATENCY_AIM = 0.98
"""Plans aim this far below a latency limit: a median of wall times never repeats to the last percent."""
LATENCY_TRIES = 4


@dataclass(frozen=True)
class Planned:
    """A plan, the relevance it was made from, and what the solver found at other budgets (as the report shows it)."""

    plan: Plan
    relevance: Relevance
    frontier: tuple[Mapping[str, Any], ...] = ()


def estimate(
    study: Study,
    method: str,
    *,
    budget: tuple[Mapping[str, Rate], Mapping[str, float], Mapping[str, float]] | None = None,
    effort: str = "fast",
    vocabulary: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    progress: Progress = silent,
) -> Relevance:
    """Estimate relevance, in nats, of every unit of every site.

    Parameters
    ----------
    budget : (rates, limits, original), optional
        What estimators that train towards a budget need; half the parameters when None.
    vocabulary : ndarray, shape ``(tokens,)``, optional
        Relevance of tokens, where it is known already.

    Raises
    ------
    BadInput
        If the method is unknown.
    """
    estimator = get(method)
    if vocabulary is None:
        progress("vocabulary", 0, 1)
        vocabulary = vocabulary_relevance(study.probe, study.sites, study.examples)
        progress("vocabulary", 1, 1)
    if budget is None and estimator.trains:
        rates = rates_for(study, ["params"])
        original = original_rates(study, rates)
        budget = (rates, {"params": 0.5 * original["params"]}, original)
    rates_, limits, original_ = budget or ({}, {}, {})
    calibration = Calibration(
        study.network,
        study.sites,
        study.examples,
        study.probe,
        vocabulary,
        rates_,
        limits,
        original_,
        effort,
        study.seed,
        progress,
    )
    statistics = (
        collect(study.probe, study.sites, estimator.needs, seed=study.seed, progress=progress)
        if estimator.needs
        else Statistics()
    )
    found = estimator.scores(calibration, statistics)
    nats = to_nats(study.probe, study.sites, found.nats, readers=found.readers, progress=progress)
    if len(vocabulary):
        nats[VOCABULARY] = vocabulary
    return replace(found, nats=nats, readers={})


def make_plan(
    study: Study,
    budget: Budget,
    *,
    method: str,
    effort: str,
    codes: Sequence[str] = (),
    precision: str = FLOAT,
    vocabulary: np.ndarray[Any, np.dtype[np.float64]] | None = None,
    progress: Progress = silent,
) -> Planned:
    """Decide what every site keeps so that the budget is met with the least predicted distortion.

    Of several processes the main one does all of it, and tells the others.

    Parameters
    ----------
    codes : sequence of str
        The coders that a budget of bytes may be met with, besides taking units away; none for plain weights.
    precision : str
        What the engine computes in; a budget of latency is met in it.

    Raises
    ------
    BadBudget, UnreachableBudget
        If the budget is above what the original costs, or below what any plan reaches.
    """
    get(method)
    if limit_of(budget) is not None:
        return _beside_cache(
            study, budget, method=method, effort=effort, codes=codes, precision=precision, vocabulary=vocabulary,
            progress=progress,
        )  # fmt: skip
    if codes and "bytes" in budget.currencies:
        from isthmus.flow.joint import make_joint_plan

        planned = make_joint_plan(study, budget, method=method, effort=effort, codes=codes, progress=progress)
        return replace(planned, plan=planned.plan.model_copy(update={"precision": precision}))
    rates = from_main(lambda: rates_for(study, budget.currencies, progress))
    original = original_rates(study, rates)
    if "latency" in rates and precision != FLOAT:
        rates = from_main(lambda: in_precision(study, rates, precision))
    limits = limits_of(budget, original)
    # An unreachable budget is refused before any time is spent on relevance.
    allocate(Problem(study.sites, flat_relevance(study), rates, limits, original))
    asked = (rates, limits, original)
    relevance = from_main(
        lambda: estimate(study, method, budget=asked, effort=effort, vocabulary=vocabulary, progress=progress)
    )
    progress("allocate", 0, 1)
    nats = relevance.nats
    allocation = from_main(lambda: allocate_lasting(study, nats, rates, limits, original))
    notes: list[str] = []
    if "latency" in limits:
        allocation, rates, tries = from_main(lambda: _meet_latency(study, nats, asked, budget, allocation, precision))
        notes += tries
    progress("allocate", 1, 1)
    plan = as_plan(study, budget, method, allocation, rates, relevance, notes, original)
    return Planned(plan.model_copy(update={"precision": precision}), relevance)


def _beside_cache(study: Study, budget: Budget, *, method: str, **rest: Any) -> Planned:
    """Plan all but the cache, which is planned on the network that is left."""
    check_keeps_cache(study.network)
    whole = {CACHE: float(full_bytes(study.network))}
    limit = limit_of(budget)
    Budget(() if limit is None else (limit,)).amounts(whole)
    others = rest_of(budget)
    if others.limits:
        planned = make_plan(study, others, method=method, **rest)
    else:
        planned = Planned(whole_plan(study.network, budget, method, study.seed), Relevance(method, {}))
    plan = planned.plan
    return replace(
        planned, plan=plan.model_copy(update={"budget": str(budget), "original": {**plan.original, **whole}})
    )


def flat_relevance(study: Study) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Return the same relevance for every unit of a site: enough to see what can be reached at all."""
    return {site.name: np.full(site.units, 1.0 / site.units) for site in study.sites}


def allocate_lasting(
    study: Study,
    nats: Relevances,
    rates: Mapping[str, Rate],
    limits: Mapping[str, float],
    original: Mapping[str, float],
) -> Allocation:
    """Spend the limits where the least is lost for good; units that may not go (of infinite relevance) stay."""
    finite = {name: np.where(np.isfinite(values), values, 0.0) for name, values in nats.items()}
    return allocate(Problem(study.sites, finite, rates, limits, original, lasting=LASTING))


def _meet_latency(
    study: Study,
    nats: Relevances,
    asked: tuple[dict[str, Rate], Mapping[str, float], Mapping[str, float]],
    budget: Budget,
    allocation: Allocation,
    precision: str,
) -> tuple[Allocation, dict[str, Rate], list[str]]:
    """Export the cut network, time it beside the original, and correct the predicted latency until it holds."""
    rates, limits, original = asked
    notes = []
    limit = next(one for one in budget.limits if one.currency == "latency")
    for attempt in range(LATENCY_TRIES):
        whole, narrowed = time_side_by_side(study, cut(study, allocation.kept), precision)
        wanted = LATENCY_AIM * limit.amount(whole)
        notes.append(f"latency try {attempt + 1}: {narrowed:.2f} of {whole:.2f} ms, {wanted:.2f} ms wanted")
        if 0.95 * wanted <= narrowed <= wanted:
            break
        # The table is in the time of another run: what was measured here goes over to it as a ratio.
        measured = narrowed / whole * original["latency"]
        corrected = rescale(rates["latency"], measured / allocation.rates["latency"])
        aimed = {**limits, "latency": LATENCY_AIM * limits["latency"]}
        if not limit.relative:
            aimed["latency"] = LATENCY_AIM * limit.value / whole * original["latency"]
        rates = {**rates, "latency": corrected}
        allocation = allocate_lasting(study, nats, rates, aimed, original)
    return allocation, rates, notes


def in_precision(study: Study, rates: Mapping[str, Rate], precision: str) -> dict[str, Rate]:
    """Return the rates with the latency that the whole network has in another precision, as a share of float32's."""
    whole, quantized = time_side_by_side(study, study.network, precision)
    return {**rates, "latency": rescale(rates["latency"], quantized / whole)}


def time_side_by_side(study: Study, narrowed: Network, precision: str = FLOAT) -> tuple[float, float]:
    """Return the median latency, in ms a batch, of the original and of a narrowed network, timed turn by turn.

    The original is in float32, the narrowed network in ``precision``.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-latency-") as folder:
        paths, batches = {}, {}
        for name, network, own in (("original", study.network, FLOAT), ("narrowed", narrowed, precision)):
            paths[name] = export_quantized(network, study.engine, own, study.examples, Path(folder) / name)
            every = held_out_batches(study, network)
            batches[name] = every[:: max(1, len(every) // 16)][:16]
        timed = time_exported(paths, batches, engine=study.engine, rounds=5)
        return timed["original"].median_ms, timed["narrowed"].median_ms


def as_plan(
    study: Study,
    budget: Budget,
    method: str,
    allocation: Allocation,
    rates: Mapping[str, Rate],
    relevance: Relevance,
    notes: Sequence[str],
    original: Mapping[str, float],
) -> Plan:
    """Return an allocation as a plan, with the rates that are predicted for it."""
    by_name = {site.name: site for site in study.sites}
    decisions = tuple(
        Decision(
            site=name,
            kind=by_name[name].kind,
            bottleneck=relevance.method,
            units=by_name[name].units,
            keep=tuple(int(unit) for unit in keep),
            distortion=float(allocation.distortion.get(name, 0.0)),
        )
        for name, keep in allocation.kept.items()
    )
    plain = rates_for(study, ["params", "bytes", "macs"])
    every = {**plain, **rates}
    predicted = predict(study, every, allocation.kept)
    return Plan(
        network=study.network.name,
        fingerprint=fingerprint(study.network),
        method=method,
        budget=str(budget),
        seed=study.seed,
        decisions=decisions,
        # A rate of latency may have been corrected since: what the original costs was read off before.
        original={**original_rates(study, plain), **original},
        predicted=predicted,
        distortion=float(sum(allocation.distortion.values())),
        notes=(*study.notes, *notes),
    )


def predict(study: Study, rates: Mapping[str, Rate], kept: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates of the narrowed network: parameters and bytes to the last one."""
    counts = kept_counts(study.sites, kept)
    predicted = {currency: float(rate(counts)) for currency, rate in rates.items()}
    _, dtype = next(iter(saved_shapes(study.network.model).values()))
    shapes = predicted_shapes(study.network.model, study.sites, kept)
    predicted["bytes"] = float(predicted_bytes({name: (shape, dtype) for name, shape in shapes.items()}))
    return predicted


def kept_of(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the kept units by site."""
    return {decision.site: decision.keep for decision in plan.decisions}


def check_plan(study: Study, plan: Plan) -> None:
    """Refuse a plan that was made for another network, or that was edited into one that cannot be carried out.

    Raises
    ------
    BadInput
        If the weights differ from those the plan was made for, or the decisions do not fit the sites.
    """
    if plan.fingerprint != fingerprint(study.network):
        raise BadInput(
            f"plan for {plan.network}: was made for other weights than those of {study.network.name}; plan again"
        )
    check_kept(study.sites, kept_of(plan))


def predicted_anew(study: Study, plan: Plan) -> Plan:
    """Return a plan with the rates of its decisions as they are now: whoever edits decisions leaves the rates behind.

    Raises
    ------
    BadInput
        If the decisions cost more than the plan's own budget allows.
    """
    rates = rates_for(study, ["params", "bytes", "macs"])
    original = {**plan.original, **original_rates(study, rates)}
    predicted = {**plan.predicted, **predict(study, rates, kept_of(plan))}
    if plan.codings:
        predicted["bytes"] = plan.predicted.get("bytes", 0.0)
    for limit in parse_budget(plan.budget).limits if "=" in plan.budget else ():
        if limit.currency not in rates or (limit.currency == "bytes" and plan.codings):
            continue  # a latency is measured at the end, and codes are fitted to the bytes
        whole, costs = original[limit.currency], predicted[limit.currency]
        if costs > limit.amount(whole) * (1 + 1e-9):
            raise BadInput(
                f"plan for {plan.network}: its decisions cost {limit.currency}={costs / whole:.1%} of the original, "
                f"above its own budget {limit}; change one of them"
            )
    return plan.model_copy(update={"original": original, "predicted": predicted})
