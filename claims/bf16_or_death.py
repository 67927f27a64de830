"""BF16 or death (Kurtic et al. 2025): what formats of numbers cost in quality, and which suits which use.

Three repetitions of one table of seven formats: a few minutes each on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm
from claims.vtrans import UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.flow.formats import KEEP, USES, FormatTable, measure_formats
from isthmus.storage.opening import open as open_network
from isthmus.tasks import Task, load_task
from isthmus.tasks.data import data_folder

NEEDS = ("stsb",)
WHOLE, TUNED, WEIGHTS, COARSE = "openvino:float32", "openvino:w8a8", "openvino:int8", "openvino:int4"
DYNAMIC = "onnxruntime:int8"
ARMS = (WHOLE, "openvino:float16", TUNED, WEIGHTS, COARSE, "onnxruntime:float32", DYNAMIC)
BATCHES = {float(batch): use for use, (batch, _) in USES.items()}
SINGLE, BATCHED = BATCHES.values()
ROUNDS = 5
MOST_LOST, NEAR = 0.03, 0.01


@cache
def _task() -> Task:
    folder = data_folder()
    if folder is None:
        raise BadInput("bf16-or-death: skipped, no folder of data")
    return load_task(f"sts:{folder / 'stsb'}")


@cache
def table(seed: int) -> FormatTable:
    """Return the formats of minilm, exported and timed anew in one interleaved run."""
    return measure_formats(open_network("minilm"), _task(), formats=",".join(ARMS), rounds=ROUNDS, threads=1, seed=seed)


def measure(point: Point) -> Mapping[str, Any]:
    """Return a format's figures from the repetition's table."""
    found = table(point.seed)
    use = BATCHES[point.level]
    row = next(one for one in found.rows if one.format.name == point.arm)
    return {
        "bytes": row.bytes, "metric": row.metric, "relative": row.relative, "similarity": row.similarity,
        "nats": row.nats, "ms": row.latency[use].median_ms, "recommended": found.recommended[use] == point.arm,
    }  # fmt: skip


def integers(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether 8-bit integers lose little."""
    rule = f"each 8-bit integer format keeps {1 - MOST_LOST:.0%} of the score; mixed: some do"
    kept = {arm: of_arm(outcomes, arm, None, "relative") for arm in (TUNED, WEIGHTS, DYNAMIC)}
    if not all(kept.values()):
        return part_of("8-bit integers", rule, UNTESTED)
    text = ", ".join(f"`{arm}` {100 * min(values):.1f}%" for arm, values in kept.items())
    return part_of("8-bit integers", rule, share_passed([min(one) >= 1 - MOST_LOST for one in kept.values()]), text)


def four_bits(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether weights of four bits are near weights and activations of eight."""
    rule = f"the score of {COARSE} is at most {100 * NEAR:g} points of a hundred below that of {TUNED}, in every run"
    ours, theirs = (of_arm(outcomes, arm, None, "relative") for arm in (COARSE, TUNED))
    if not ours or len(ours) != len(theirs):
        return part_of("4-bit weights", rule, UNTESTED)
    text = f"{100 * min(ours):.1f}% against {100 * min(theirs):.1f}%"
    gaps = [one >= other - NEAR for one, other in zip(ours, theirs, strict=True)]
    return part_of("4-bit weights", rule, share_passed(gaps), text)


def by_use(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether 4-bit weights are recommended for one at a time and 8-bit integers for batches."""
    rule = (
        f"of the formats that keep {KEEP:.0%} of the score, the fastest (of those whose quartiles overlap with its own "
        f"the smallest) is {COARSE} for one text at a time and {TUNED} for batches, in every run; mixed: in some"
    )
    chosen = {
        batch: [one["arm"] for one in outcomes if one["recommended"] and one["level"] == batch] for batch in BATCHES
    }
    if not all(chosen.values()):
        return part_of("the format by use", rule, UNTESTED)
    wanted = dict(zip(BATCHES, (COARSE, TUNED), strict=True))
    passed = [arm == wanted[batch] for batch, arms in chosen.items() for arm in arms]
    text = "; ".join(
        f"{BATCHES[batch]}: {', '.join(f'`{arm}` {arms.count(arm)} times' for arm in dict.fromkeys(arms))}"
        for batch, arms in chosen.items()
    )
    return part_of("the format by use", rule, share_passed(passed), text)


TRIALS = Trials(
    slug="bf16-or-death",
    claim=(
        "Tuned 8-bit integers lose 1 to 3 percent, 4-bit weights are near them; 4-bit weights suit one request at a "
        "time, 8-bit integers suit batches."
    ),
    experiment=(
        "`isthmus formats` on minilm and STS-B dev: seven formats, exported, scored in their engine and timed in one "
        "interleaved run on one thread; a seed is a repetition. The level is how many texts are run at once. Two of "
        "the paper's formats are not here: no engine multiplies 8-bit floats on a processor, so FP8 is not tested, and "
        "bfloat16 is computed only where the processor has it. float16 is weights in 16 bits, computed in float32. "
        "The paper's networks are decoders of 8 to 405 billion parameters on GPUs; this is an encoder of 22.7 million."
    ),
    arms=dict.fromkeys(ARMS, tuple(BATCHES)),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [integers(outcomes), four_bits(outcomes), by_use(outcomes)],
    columns=(
        Column("bytes", "bytes", "{:,.0f}"),
        Column("metric", "Spearman", "{:.4f}"),
        Column("similarity", "cosine of outputs", "{:.4f}"),
        Column("nats", "divergence, nats", "{:.3g}"),
        Column("ms", "ms", "{:.3g}"),
    ),
    level="texts at once",
    recipe={"rounds": ROUNDS, "uses": {use: list(sizes) for use, sizes in USES.items()}, "threads": 1},
    data=lambda: _task().fingerprint,
    needs=NEEDS,
)
