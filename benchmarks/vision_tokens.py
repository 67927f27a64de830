"""The zoo's ViT with fewer tokens and no training: accuracy, and time in OpenVINO beside the whole network.

Every policy leaves so much work that four tokens in ten are gone in the mean over layers, or less. Which counts stay
after which layer is solved on images to tune on; so is which policy is the one that is judged, by its divergence there.
All exports are timed turn by turn in one run, batches of 32.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from claims.common import Say
from claims.data import FASHION, image_task, why_not

from isthmus.bottlenecks.tokens.costing import TokenCost, token_cost
from isthmus.bottlenecks.tokens.narrowing import narrow_tokens, tokens_of
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, lengths
from isthmus.bottlenecks.tokens.registry import to_data
from isthmus.cost.examples import one_example
from isthmus.cost.measure import measure_macs
from isthmus.errors import BadInput
from isthmus.export.engines import engine_batches, export_network
from isthmus.export.timing import time_exported
from isthmus.flow.record import versions
from isthmus.flow.tokens import resolved
from isthmus.flow.verifying import measure_quality
from isthmus.network import Network
from isthmus.relevance.probe import make_probe, measure_network
from isthmus.storage.files import write_atomic
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task
from isthmus.tasks.data import data_folder

ENGINE, BATCH, BATCHES, ROUNDS = "openvino", 32, 4, 15
IMAGES, PROBED = 2000, 512
"""How many images accuracy is of, and how many to tune on a policy is chosen by."""
MODEL, RANDOM = "vit-fashion", "random:drop"
POLICIES = (
    "similarity:merge",
    "information-degree:merge",
    "class-attention:merge",
    "class-attention:drop",
    RANDOM,
)
LEAVING, LOST, FASTER = 0.4, 1.0, 0.25
_STEPS = 10


def narrowed_to(network: Network, task: Task, cost: TokenCost, policy: str) -> tuple[TokenNarrowing, float]:
    """Return the policy of the largest budget of work at which the wanted share of tokens is gone, and that share.

    Tokens are counted in the mean over all layers, class tokens among them.

    Raises
    ------
    BadInput
        If no budget does it.
    """
    found, losses = cost.tokens, dict[str, float]()
    for step in range(_STEPS):
        share = 1 - LEAVING + 0.02 - 0.02 * step  # what is left of scoring and of the ends is not known beforehand
        made = resolved(network, task, cost, f"{policy}:macs={share:.0%}", losses)
        entering = lengths(made, found.depth, found.total, found.prefix)
        gone = 1 - sum(entering) / (found.depth * found.total)
        if gone >= LEAVING:
            return made, gone
    raise BadInput(f"vision_tokens: no budget lets {LEAVING:.0%} of the tokens leave by {policy}")


def run(out: Path, *, threads: int | None = None, validation: bool = False, say: Say = print) -> dict[str, Any]:
    """Measure every policy and write the result.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    """
    data, missing = data_folder(), why_not(FASHION)
    if data is None or missing:
        raise BadInput(f"vision_tokens: skipped, {missing}")
    network = open_network(MODEL)
    task = image_task(data, FASHION, validation=validation)
    held = task.held_out
    task = replace(task, held_out=replace(held, examples=held.examples[:IMAGES], labels=held.labels[:IMAGES]))
    cost = token_cost(network, tokens_of(network))
    probe = make_probe(network, list(task.train)[-PROBED:])  # budgets are solved on the first
    networks, points = {"original": network}, []
    for policy in POLICIES:
        started = time.monotonic()
        chosen, gone = narrowed_to(network, task, cost, policy)
        small = narrow_tokens(network, chosen, cost.tokens)
        networks[policy] = small
        points.append(
            {
                "policy": policy,
                "gone": gone,
                "schedule": to_data(chosen)["schedule"],
                "macs": measure_macs(small.model, one_example(small, 1)),
                "nats": measure_network(probe, small),
                "metric": measure_quality([small], task)[0].value,
                "seconds": time.monotonic() - started,
            }
        )
        say(f"{policy}: {gone:.1%} of the tokens gone, {points[-1]['nats']:.4f} nats, {points[-1]['metric']:.2%}")
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as folder:
        paths = {
            name: export_network(one, ENGINE, Path(folder) / f"{place}")
            for place, (name, one) in enumerate(networks.items())
        }
        batches = engine_batches(network, task.held_out.passages[: BATCH * BATCHES], BATCH)
        timed = time_exported(paths, batches, engine=ENGINE, rounds=ROUNDS, threads=threads)
    original = {
        "metric": measure_quality([network], task)[0].value,
        "macs": measure_macs(network.model, one_example(network, 1)),
        "milliseconds": timed["original"].median_ms,
    }
    points = [{**point, "milliseconds": timed[str(point["policy"])].median_ms} for point in points]
    result = {
        "benchmark": "vision_tokens",
        "record": {
            "versions": versions(), "network": fingerprint(network), "data": task.fingerprint, "threads": threads,
            "images": len(task.held_out.examples), "batch": BATCH,
        },
        "original": original,
        **conclude(original, points),
        "points": points,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    say(f"{result['chosen']}: {result['lost']:+.2f} points, {result['time']:.1%} of the time; met: {result['met']}")
    return result


def conclude(original: Mapping[str, Any], points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the policy of the least divergence on images to tune on, and what it loses and saves on the others."""
    best = min((point for point in points if point["policy"] != RANDOM), key=lambda point: float(point["nats"]))
    lost = 100 * (original["metric"] - best["metric"])
    share = best["milliseconds"] / original["milliseconds"]
    return {"chosen": best["policy"], "lost": lost, "time": share, "met": lost <= LOST and share <= 1 - FASTER}
