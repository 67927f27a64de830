"""The roofline beside the clock: predicted and measured time of every module of five networks, in OpenVINO, here.

The prediction is fitted to micro-benchmarks whose shapes are none of these networks'. Micro-benchmarks and networks are
timed in turn, so that whatever else the machine does hits both; of all rounds the fastest sixteenth counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from claims.common import Ledger, Outcome, Say
from claims.tables import markdown_table

from isthmus.cost.latency_table import machine
from isthmus.cost.roofline.analysis import Roofline, analyse
from isthmus.cost.roofline.devices import Device
from isthmus.cost.roofline.elements import elements
from isthmus.cost.roofline.machine import device_from
from isthmus.cost.roofline.phases import trace_phase
from isthmus.cost.roofline.probes import PROBES, STREAM
from isthmus.cost.roofline.tracing import on_meta
from isthmus.errors import BadInput
from isthmus.export.probing import AT_ONCE, low_mean
from isthmus.export.probing_openvino import OpenVinoBench
from isthmus.export.profiling import Counted, Profile, summarise
from isthmus.flow.record import versions

RANK, ERROR = 0.9, 0.25
"""What is to be reached: rank correlation at least, median relative error at most."""


@dataclass(frozen=True)
class Case:
    """One network in one phase: how it is built, and what it is run on."""

    name: str
    phase: str
    build: Callable[[], Any]
    tokens: int | None = None
    cache_tokens: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


def _minilm() -> Any:
    from isthmus.storage.opening import open as open_network

    return open_network("minilm").model


def _vit() -> Any:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
    return ViTModel(ViTConfig(image_size=160, **sizes), add_pooling_layer=False)


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, vocab_size=8000, **sizes))


def _resnet() -> Any:
    from transformers import ResNetConfig, ResNetModel

    sizes = {"embedding_size": 32, "hidden_sizes": [128, 256, 512, 1024], "depths": [2, 2, 2, 2]}
    model = ResNetModel(ResNetConfig(**sizes))
    model.config.image_size = 128
    return model


CASES = (
    Case("minilm", "encode", _minilm, tokens=128),
    Case("vit", "encode", _vit),
    Case("resnet", "encode", _resnet),
    Case("llama prefill", "prefill", _llama, tokens=64),
    Case("llama decode", "decode", _llama, tokens=1, cache_tokens=256),
)


def predicted(case: Case, model: Any, device: Device) -> Roofline:
    """Return what the roofline says of a case, as it is measured: without a cache before decoding, with one written
    anew in decoding, for that is what the exported graph does."""
    phase = "encode" if case.phase == "prefill" else case.phase
    traced = trace_phase(on_meta(model), phase, tokens=case.tokens, cache_tokens=case.cache_tokens)
    return analyse(traced, device, elements("float32"), network=case.name, phase=case.phase, appends=False)


def counted(case: Case, model: Any, threads: int | None) -> Counted:
    """Make a case ready in the engine."""
    import torch

    config = model.config
    if case.phase == "encode" and case.tokens is None:
        return Counted(
            model, {"pixel_values": torch.randn(1, 3, config.image_size, config.image_size)}, threads=threads
        )
    count = case.tokens or 1
    inputs = {"input_ids": torch.full((1, count), 5)}
    past: list[Any] = []
    if case.cache_tokens:
        size = config.hidden_size // config.num_attention_heads
        shape = (1, config.num_key_value_heads, case.cache_tokens, size)
        past = [torch.randn(shape) for _ in range(2 * config.num_hidden_layers)]
        inputs["position_ids"] = torch.full((1, count), case.cache_tokens)
    return Counted(model, inputs, past, threads=threads)


def compare(case: Case, found: Roofline, profile: Profile) -> Outcome:
    """Hold predicted against measured times, module by module.

    Only modules that both know are compared; ``covered`` is their share of the measured time.
    """
    from scipy.stats import spearmanr

    told = found.by_module()
    paths = [path for path in told if profile.modules.get(path, 0.0) > 0]
    left = np.array([told[path] for path in paths])
    right = np.array([profile.modules[path] for path in paths])
    errors = np.abs(left / right - 1)
    total = sum(profile.modules.values()) + profile.elsewhere
    return {
        "network": case.name,
        "modules": len(paths),
        "rank": float(spearmanr(left, right).statistic),
        "error": float(np.median(errors)),
        "weighted_error": float((errors * right).sum() / right.sum()),
        "predicted_ms": 1e3 * float(sum(told.values())),
        "measured_ms": 1e3 * total,
        "wall_ms": 1e3 * profile.wall,
        "covered": float(right.sum() / total),
        "times": {path: [1e6 * told[path], 1e6 * profile.modules[path]] for path in paths},
    }


def conclude(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return whether the targets are reached on every network."""
    if not outcomes:
        return {}
    return {
        "rank": min(one["rank"] for one in outcomes),
        "error": max(one["error"] for one in outcomes),
        "reached": all(one["rank"] >= RANK and one["error"] <= ERROR for one in outcomes),
    }


def run(
    out: Path, *, threads: int | None = None, passes: int = 6, again: bool = False, say: Say = print
) -> dict[str, Any]:
    """Time micro-benchmarks and networks in turn, fit, predict and compare; what is there already is kept.

    Raises
    ------
    BadInput
        If there are to be no passes.
    """
    import torch

    if passes < 1:
        raise BadInput(f"roofline: {passes} passes; give at least one")
    if again:
        out.unlink(missing_ok=True)
    record = {
        "versions": versions(),
        "machine": machine(),
        "threads": threads,
        "passes": passes,
        "rounds": AT_ONCE,
    }
    ledger = Ledger(out, {"benchmark": "roofline", "record": record}, conclude)
    if {one["network"] for one in ledger.outcomes} >= {case.name for case in CASES}:
        return conclude(ledger.outcomes)
    torch.manual_seed(0)
    models = {case.name: case.build().eval() for case in CASES}
    ready = {case.name: counted(case, models[case.name], threads) for case in CASES}
    probes = (*PROBES, STREAM)
    bench = OpenVinoBench(probes, "float32", threads)
    times: list[list[float]] = []
    rounds: dict[str, list[Any]] = {case.name: [] for case in CASES}
    for turn in range(passes):
        times += bench.rounds(AT_ONCE)
        for name, one in ready.items():
            rounds[name] += one.rounds(AT_ONCE)
        say(f"pass {turn + 1} of {passes}")
    measured = dict(zip(probes, low_mean(np.array(times)).tolist(), strict=True))
    device = device_from(measured, name="here", source="measured", dtype="float32")
    say(f"peak {device.peaks['float32'] / 1e9:.0f} GFLOP/s, {device.bandwidth / 1e9:.1f} GB/s")
    ledger.head["device"] = {
        "peak": device.peaks["float32"],
        "bandwidth": device.bandwidth,
        "fit": {kind: curve.error for kind, curve in device.curves.items()},
    }
    for case in CASES:
        outcome = compare(case, predicted(case, models[case.name], device), summarise(rounds[case.name]))
        ledger.add(outcome)
        say(f"{case.name}: {json.dumps({key: value for key, value in outcome.items() if key != 'times'})}")
    return conclude(ledger.outcomes)


def section(result: Mapping[str, Any]) -> list[str]:
    """Return the part of docs/benchmarks.md."""
    rows = [
        [
            one["network"],
            f"{one['modules']}",
            f"{one['rank']:.3f}",
            f"{one['error']:.0%}",
            f"{one['predicted_ms']:.2f}",
            f"{one['measured_ms']:.2f}",
            f"{one['covered']:.0%}",
        ]
        for one in result["points"]
    ]
    heads = ["network", "modules", "rank correlation", "median error", "predicted ms", "measured ms", "compared"]
    record, device = result["record"], result["device"]
    threads = record["threads"] or "all"
    return [
        "## The roofline beside the clock",
        "",
        markdown_table(heads, rows),
        "",
        f"Module by module in OpenVINO, float32, {threads} threads, on {record['machine']}: "
        f"{device['peak'] / 1e9:.0f} GFLOP/s and {device['bandwidth'] / 1e9:.1f} GB/s as measured. The prediction is "
        "fitted to micro-benchmarks of other shapes. Compared: the share of the measured time in modules that both "
        "know.",
        "",
    ]
