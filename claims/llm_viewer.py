"""LLM-Viewer (Yuan et al. 2024): from a config alone, what each operator does, what bounds it and how long it takes.

Counting takes seconds; times are those of ``python -m benchmarks roofline``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm
from claims.vtrans import UNTESTED, Part
from isthmus.cost.roofline.analysis import analyse
from isthmus.cost.roofline.devices import Device
from isthmus.cost.roofline.elements import elements
from isthmus.cost.roofline.phases import trace_phase
from isthmus.cost.roofline.tracing import on_meta
from isthmus.errors import BadInput

MEASURED = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "roofline.json"
PREFILL, DECODE, TIMED = "prefill, counted", "decode, counted", "timed"
TOKENS, HELD = (256.0, 1024.0), (64.0, 512.0)
"""Tokens of a prompt, and in the cache when one more is written."""
NETWORKS = ("llama prefill", "llama decode")
"""Of the benchmark: the phases of its small decoder."""
EXACT, RANK, ERROR = 0.01, 0.9, 0.25


def config(seed: int) -> Any:
    """Return the config of a small Llama, its sizes drawn by seed."""
    from transformers import LlamaConfig

    rng = np.random.default_rng(seed)
    heads = int(rng.choice([4, 8]))
    width = heads * int(rng.choice([32, 64]))
    return LlamaConfig(
        hidden_size=width, intermediate_size=int(width * rng.uniform(2, 4)) // 8 * 8, num_attention_heads=heads,
        num_hidden_layers=int(rng.integers(2, 5)), num_key_value_heads=heads // int(rng.choice([1, 2])),
        vocab_size=int(rng.integers(1000, 4000)), max_position_embeddings=2048,
    )  # fmt: skip


@cache
def results() -> dict[str, Any]:
    """Return the benchmark's results.

    Raises
    ------
    BadInput
        If it has not been run.
    """
    if not MEASURED.exists():
        raise BadInput("llm-viewer: the benchmark roofline has no results; run python -m benchmarks roofline")
    found: dict[str, Any] = json.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def device() -> Device:
    """Return the machine that the benchmark measured: its peak of multiply-adds and its bandwidth."""
    held = results()["device"]
    return Device("measured", {"float32": held["peak"]}, held["bandwidth"], "the benchmark roofline")


def counted_by_torch(model: Any, inputs: Mapping[str, Any]) -> int:
    """Return the multiply-accumulates of matrix products of a pass, as torch counts what it dispatches.

    Attention has to be written out: of the fused kernel of a CPU torch counts nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(**inputs)
    return int(counter.get_total_flops()) // 2


def _counted(arm: str, level: float, seed: int) -> dict[str, Any]:
    from transformers import LlamaForCausalLM

    drawn = config(seed)
    model = LlamaForCausalLM(drawn).eval()
    phase, tokens = ("prefill", int(level)) if arm == PREFILL else ("decode", 1)
    held = None if arm == PREFILL else int(level)
    found = analyse(
        trace_phase(on_meta(model), phase, tokens=tokens, cache_tokens=held), device(), elements("float32"), phase=phase
    )
    result = {
        "intensity": found.total.intensity,
        "memory bound": float(np.average([row.bound == "memory" for row in found.rows], weights=_seconds(found.rows))),
        "bound": float(found.total.bound == "memory"),
    }
    parameters = sum(one.numel() for one in model.parameters())
    if arm == PREFILL:
        model.set_attn_implementation("eager")
        ids = torch.zeros((1, tokens), dtype=torch.long)
        result["off"] = found.total.macs / counted_by_torch(model, {"input_ids": ids, "use_cache": False}) - 1
    else:
        # A step reads every weight but the rows of the table of words that it does not need.
        read = 4 * (parameters - (drawn.vocab_size - 1) * drawn.hidden_size)
        result["off"] = found.total.weight_bytes / read - 1
    return result


def _seconds(rows: Sequence[Any]) -> list[float]:
    return [max(row.ideal, 1e-15) for row in rows]


def _timed(network: str) -> dict[str, Any]:
    """Return how predicted and measured times of a network's modules agree."""
    point = next(one for one in results()["points"] if one["network"] == network)
    times = np.array(list(point["times"].values()))
    return {
        "rank": float(spearmanr(times[:, 0], times[:, 1]).statistic),
        "error": float(np.median(np.abs(times[:, 0] / times[:, 1] - 1))),
    }


def measure(point: Point) -> Mapping[str, Any]:
    """Count a pass from a config, or hold predicted times against those that were measured."""
    if point.arm == TIMED:
        return _timed(NETWORKS[int(point.level)])
    return _counted(point.arm, point.level, point.seed)


def bounds(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): what bounds a step and a prompt."""
    rule = (
        "for every config and length, one token of one text is bound by memory, and a prompt by arithmetic, on the "
        "machine that the benchmark measured; mixed: for some"
    )
    passed, shares = [], []
    for arm, wanted in ((DECODE, 1.0), (PREFILL, 0.0)):
        own = of_arm(outcomes, arm, None, "bound")
        if not own:
            return part_of("what bounds a token and a prompt", rule, UNTESTED)
        passed += [one == wanted for one in own]
        shares.append(float(np.mean(of_arm(outcomes, arm, None, "intensity"))))
    balance = device().peak("float32") / device().bandwidth
    text = f"{shares[0]:.2f} and {shares[1]:.0f} operations a byte, the machine's balance {balance:.1f}"
    return part_of("what bounds a token and a prompt", rule, share_passed(passed), text)


def counts(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): the counts themselves."""
    rule = (
        "for every config and length the multiply-accumulates of a prompt are those that torch counts, and the bytes "
        f"of weights of a token those of all parameters that it reads, within {EXACT:.0%}; mixed: for some"
    )
    own = [value for arm in (PREFILL, DECODE) for value in of_arm(outcomes, arm, None, "off")]
    if not own:
        return part_of("counts from a config", rule, UNTESTED)
    passed = [abs(value) <= EXACT for value in own]
    return part_of("counts from a config", rule, share_passed(passed), f"off by {max(map(abs, own)):.2%} at the most")


def times(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): predicted beside measured times."""
    rule = (
        f"in both phases of the small decoder, over modules, predicted and measured times have a rank correlation of "
        f"{RANK:g} or more and a median error of at most {ERROR:.0%}; mixed: some of these"
    )
    passed, texts = [], []
    for place, network in enumerate(NETWORKS):
        ranks, errors = (of_arm(outcomes, TIMED, float(place), key) for key in ("rank", "error"))
        if not ranks:
            return part_of("predicted times", rule, UNTESTED)
        passed += [float(np.mean(ranks)) >= RANK, float(np.mean(errors)) <= ERROR]
        texts.append(f"{network}: {np.mean(ranks):.3f}, {np.mean(errors):.1%}")
    return part_of("predicted times", rule, share_passed(passed), "; ".join(texts))


TRIALS = Trials(
    slug="llm-viewer",
    claim=(
        "From a config alone it can be told what every operator of a language model does and moves, that writing a "
        "token is bound by memory where reading a prompt is bound by arithmetic, and how long each module takes."
    ),
    experiment=(
        "Llamas whose sizes are drawn by seed, counted from their configs, against torch's own counter and against "
        "their parameters. Bounds are those of the machine that the benchmark `roofline` measured, and times those of "
        "its small decoder in OpenVINO on one thread, predicted from micro-benchmarks of other shapes: one "
        "measurement, the same at every seed. See docs/benchmarks.md for the other networks."
    ),
    arms={PREFILL: TOKENS, DECODE: HELD, TIMED: tuple(float(place) for place in range(len(NETWORKS)))},
    seeds=(0, 1, 2, 3, 4),
    measure=measure,
    parts=lambda outcomes: [bounds(outcomes), counts(outcomes), times(outcomes)],
    columns=(
        Column("intensity", "operations a byte"),
        Column("memory bound", "of the time, bound by memory", "{:.0%}"),
        Column("off", "counts off by", "{:+.2%}"),
        Column("rank", "rank correlation", "{:.3f}"),
        Column("error", "median error", "{:.1%}"),
    ),
    level="tokens, or network",
    recipe={"networks": list(NETWORKS)},
    data=lambda: digest_of([np.array(list(one["times"].values())) for one in results()["points"]]),
)
