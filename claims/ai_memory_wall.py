"""AI and memory wall (Gholami et al. 2024): a decoder that generates is bound by memory where an encoder is not.

54 steps timed in OpenVINO after half a minute of compiling each: half an hour on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.cost.roofline.analysis import analyse
from isthmus.cost.roofline.devices import Device
from isthmus.cost.roofline.elements import elements
from isthmus.cost.roofline.phases import trace_phase
from isthmus.cost.roofline.tracing import on_meta

ENCODE, DECODE, STEP = "encoder, one pass", "decoder, one token", "decoder, timed"
LENGTHS = (64.0, 256.0, 1024.0)
WIDTH, LAYERS, HEADS, VOCABULARY = 512, 4, 8, 8000
SIZES = tuple((width, batch, held) for width in (256, 512, 768) for batch in (1, 4, 16) for held in (64, 512))
"""Of the timed steps: the decoder's width, texts at once, tokens in the cache."""
RUNS, THREADS = 64, 1
FAR = 10.0
"""Times fewer operations a byte that count as far fewer."""
NOWHERE = Device("nowhere", {"float32": 1.0}, 1.0, "assumed")
"""Only operations and bytes are read off; what a device could do does not enter."""


def encoder() -> Any:
    """Return a BERT of random weights."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
            vocab_size=VOCABULARY, max_position_embeddings=2048,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def decoder(width: int) -> Any:
    """Return a GPT-2 of random weights: the same matrices as the encoder's at the same width, and the vocabulary's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=width, n_layer=LAYERS, n_head=HEADS, n_inner=4 * width, vocab_size=VOCABULARY, n_positions=2048,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def counts(
    model: Any, phase: str, *, batch: int = 1, tokens: int, held: int | None = None, appends: bool = True
) -> dict[str, float]:
    """Return operations and bytes of a pass, and operations a byte.

    Parameters
    ----------
    appends : bool
        Whether new keys and values are put behind those that are there; a graph without a state writes all anew.
    """
    traced = trace_phase(on_meta(model), phase, batch=batch, tokens=tokens, cache_tokens=held)
    total = analyse(traced, NOWHERE, elements("float32"), phase=phase, batch=batch, appends=appends).total
    return {"operations": float(total.flops), "bytes": float(total.bytes), "intensity": float(total.intensity)}


def measure(point: Point) -> Mapping[str, Any]:
    """Count a pass, or count and time a step of a decoder."""
    if point.arm == ENCODE:
        return counts(encoder(), "encode", tokens=int(point.level))
    if point.arm == DECODE:
        return counts(decoder(WIDTH), "decode", tokens=1, held=int(point.level))
    width, batch, held = SIZES[int(point.level)]
    found = counts(decoder(width), "decode", batch=batch, tokens=1, held=held, appends=False)
    return {**found, "ms": 1e3 * _seconds(width, batch, held), "size": [width, batch, held]}


def _seconds(width: int, batch: int, held: int) -> float:
    import torch

    from isthmus.export.probing import low_mean
    from isthmus.export.profiling import Counted

    torch.manual_seed(0)
    model = decoder(width).eval()
    shape = (batch, HEADS, held, width // HEADS)
    past = [torch.randn(shape) for _ in range(2 * LAYERS)]
    inputs = {"input_ids": torch.full((batch, 1), 5), "position_ids": torch.full((batch, 1), held)}
    walls = [wall for _, wall in Counted(model, inputs, past, threads=THREADS).rounds(RUNS)]
    return float(low_mean(np.array(walls)[:, None])[0])


def fewer(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): operations a byte of a decoder that generates and of an encoder's pass."""
    rule = (
        f"at every length the encoder's pass has at least {FAR:g} times as many operations a byte as the decoder's "
        "token; does not hold: nowhere; mixed: otherwise"
    )
    ratios = []
    for length in LENGTHS:
        one, other = (of_arm(outcomes, arm, length, "intensity") for arm in (ENCODE, DECODE))
        if not one or not other:
            return part_of("operations a byte", rule, UNTESTED)
        ratios.append(one[0] / other[0])
    passed = [ratio >= FAR for ratio in ratios]
    text = ", ".join(f"{length:g} tokens: {ratio:.0f} times" for length, ratio in zip(LENGTHS, ratios, strict=True))
    return part_of("operations a byte", rule, HOLDS if all(passed) else MIXED if any(passed) else FAILS, text)


def follows(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): what the measured time of a token follows."""
    rule = (
        f"over {len(SIZES)} steps, the rank correlation of measured time with bytes is higher than with operations by "
        "more than twice the standard error of paired differences over repetitions; does not hold: lower likewise; "
        "mixed: otherwise"
    )
    name, bytes_, operations = "time follows bytes", [], []
    for seed in sorted({one["seed"] for one in outcomes}):
        own = [one for one in outcomes if one["arm"] == STEP and one["seed"] == seed]
        if len(own) == len(SIZES):
            times = [one["ms"] for one in own]
            bytes_.append(float(spearmanr(times, [one["bytes"] for one in own]).statistic))
            operations.append(float(spearmanr(times, [one["operations"] for one in own]).statistic))
    if len(bytes_) < 2:
        return part_of(name, rule, UNTESTED)
    gap, error = paired(bytes_, operations)
    verdict = HOLDS if gap > 2 * error else FAILS if gap < -2 * error else MIXED
    return part_of(name, rule, verdict, f"{np.mean(bytes_):.3f} with bytes, {np.mean(operations):.3f} with operations")


TRIALS = Trials(
    slug="ai-memory-wall",
    claim=(
        "At equal size and length a decoder that generates does far fewer operations a byte than an encoder's pass, "
        "and its time follows the bytes that it moves more than its operations."
    ),
    experiment=(
        f"BERT and GPT-2 of {LAYERS} layers, width {WIDTH} and {VOCABULARY} tokens, counted from their configs. Then "
        f"one token of GPT-2, timed in OpenVINO in float32 on {THREADS} thread: widths 256, 512 and 768, 1, 4 and "
        f"16 texts at once, 64 and 512 tokens in the cache; of {RUNS} runs the fastest sixteenth. A seed is a "
        "repetition."
    ),
    arms={ENCODE: LENGTHS, DECODE: LENGTHS, STEP: tuple(float(number) for number in range(len(SIZES)))},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [fewer(outcomes), follows(outcomes)],
    columns=(
        Column("operations", "operations"),
        Column("bytes", "bytes"),
        Column("intensity", "operations a byte"),
        Column("ms", "ms"),
    ),
    level="tokens, or step",
    recipe={"width": WIDTH, "layers": LAYERS, "sizes": [list(size) for size in SIZES], "runs": RUNS},
    data=lambda: digest_of([]),
)
