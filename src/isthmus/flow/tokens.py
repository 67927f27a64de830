"""Narrow tokens: a network whose tokens leave it from layer to layer, as an artifact, measured beside the original."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.bottlenecks.tokens.budget import solved
from isthmus.bottlenecks.tokens.costing import TokenCost, to_decisions, token_cost
from isthmus.bottlenecks.tokens.engine import narrowed
from isthmus.bottlenecks.tokens.narrowing import narrow_tokens, reads_all, tokens_of
from isthmus.bottlenecks.tokens.policy import TokenNarrowing
from isthmus.bottlenecks.tokens.refining import MEASUREMENTS, refined
from isthmus.bottlenecks.tokens.registry import BUDGET, parsed, scheduled, thousandths, to_data
from isthmus.bottlenecks.tokens.schedule import WHOLE
from isthmus.errors import BadInput
from isthmus.flow.suiting import check_suits, mean_tokens
from isthmus.flow.untrained import write_and_measure
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.storage.artifact import check_output
from isthmus.storage.files import canonical
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.parts import described_parts
from isthmus.tasks import Task

MEASURED = (64, 512)
"""How many examples a loss is measured on for a budget, at least and at most."""
WORK = 5e12
"""Multiply-accumulates that measuring may take beyond the least: a minute or two on two cores."""


@dataclass(frozen=True)
class FewerTokens:
    """A network with narrowed tokens, as it was opened again.

    Parameters
    ----------
    network : Network
    plan : Plan
    rows : list of dict
        What was measured of the original and of it, see `isthmus.flow.verifying.compare_networks`.
    """

    network: Network
    plan: Plan
    rows: list[dict[str, Any]]


def narrow_by_tokens(
    network: Network,
    task: Task,
    spec: str,
    out: Path,
    *,
    engine: str = "openvino",
    seed: int = 0,
    progress: Progress = silent,
) -> FewerTokens:
    """Let tokens leave a network, write it, open it again and measure it beside the original.

    Nothing is trained, and no weight changes: what is saved is work.

    Parameters
    ----------
    spec : str
        ``SCORE:ACTION:SCHEDULE``, see `isthmus.bottlenecks.tokens.registry.parsed`; with ``macs=60%`` the schedule is
        solved for, what is lost being measured on the task's examples in nats of divergence.
    out : Path
        A folder that does not exist yet.

    Raises
    ------
    BadInput
        If the policy cannot be read or does not fit the network or the task, or the folder cannot be written to.
    UnreachableBudget
        If no schedule keeps the budget.
    UnsupportedNetwork
        If the network's tokens cannot be followed.
    """
    started = clock.monotonic()
    check_output(out)
    parsed(spec)
    check_suits(network, task)
    if "attention" in described_parts(network.model):
        raise BadInput(f"network {network.name}: its attention is rounded, which comes last; give it as it was before")
    found = tokens_of(network)
    if found.free:
        found = replace(found, total=max(mean_tokens(network, task.held_out.passages[:512]), found.prefix + 1))
    cost = token_cost(network, found)
    policy = resolved(network, task, cost, spec)
    small = narrow_tokens(network, policy, found)
    plan = Plan(
        network=network.name,
        fingerprint=fingerprint(network),
        method=policy.score.name,
        budget=spec,
        seed=seed,
        decisions=to_decisions(policy, found) if policy.schedule.fixed else (),
        original={"macs": cost.whole()},
        predicted={"macs": cost.of_policy(policy)} if policy.schedule.fixed else {},
    )
    opened, rows = write_and_measure(
        network, small, task, out, {"plan": plan.model_dump(mode="json"), "tokens": to_data(policy)},
        name=f"{network.name} {spec}", started=started, engine=engine, seed=seed, progress=progress,
        macs_length=found.total if found.free else None,
    )  # fmt: skip
    return FewerTokens(opened, plan, rows)


def resolved(
    network: Network, task: Task, cost: TokenCost, spec: str, losses: dict[str, float] | None = None
) -> TokenNarrowing:
    """Return the policy that a line of text asks for, solved for where it names a budget.

    Parameters
    ----------
    losses : dict of str to float, optional
        What policies lost that were measured already; those that are measured now are added.
    """
    known = {} if losses is None else losses
    score, action, kind, value = parsed(spec)
    if kind != BUDGET:
        return TokenNarrowing(score, action, scheduled(kind, value))
    share = thousandths(value, f"tokens {spec!r}")
    if not 0 < share < WHOLE:
        raise BadInput(f"tokens {spec!r}: a budget of {share / WHOLE:.1%}; give one between 0 and 100%")
    # So many that solving and refining take their part of the work each.
    wanted = WORK / (cost.whole() * (3 * cost.tokens.depth + MEASUREMENTS))
    count = int(min(max(wanted, MEASURED[0]), MEASURED[1]))
    probe = make_probe(network, list(task.require_train())[:count])

    def lost(policy: TokenNarrowing) -> float:
        tokens, key = cost.tokens, canonical(to_data(policy)).decode()
        if key not in known:
            with narrowed(network.model, tokens.layers, policy, prefix=tokens.prefix, restore=reads_all(network)):
                known[key] = max(0.0, measure_network(probe, network))
        return known[key]

    limit = share / WHOLE * cost.whole()
    found = solved(cost, score, action, limit, lost)
    return refined(cost, found, limit, lost, measurements=int(min(MEASUREMENTS, WORK / (count * cost.whole()))))
