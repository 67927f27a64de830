"""The roofline beside the clock: what is compared, what is concluded, what the page says."""

from __future__ import annotations

import json

import pytest
import torch
from benchmarks import roofline

from isthmus.cost.roofline.analysis import analyse
from isthmus.cost.roofline.devices import find_device
from isthmus.cost.roofline.elements import elements
from isthmus.cost.roofline.phases import trace_phase
from isthmus.cost.roofline.tracing import on_meta
from isthmus.errors import BadInput
from isthmus.export.profiling import Counted, Profile, compile_counted, filled_cache, summarise

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 50}


def tiny():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES)).eval()


def found(model, **asked):
    return analyse(
        trace_phase(on_meta(model), "decode", **asked), find_device("l4"), elements("float32"), appends=False
    )


def test_a_perfect_prediction_has_no_error():
    told = found(tiny(), cache_tokens=6)
    times = told.by_module()
    half = Profile({path: seconds / 2 for path, seconds in times.items()} | {"unknown": 1.0}, 0.0, 2.0)
    outcome = roofline.compare(roofline.CASES[-1], told, half)
    assert outcome["rank"] == pytest.approx(1.0)
    assert outcome["error"] == pytest.approx(1.0)  # twice what was measured, everywhere
    assert outcome["modules"] == len(times)
    assert outcome["covered"] == pytest.approx(sum(times.values()) / 2 / (1.0 + sum(times.values()) / 2))
    assert json.loads(json.dumps(outcome)) == outcome


def test_reached_only_where_every_network_reaches():
    good, bad = {"rank": 0.95, "error": 0.1}, {"rank": 0.95, "error": 0.3}
    assert roofline.conclude([good])["reached"]
    assert not roofline.conclude([good, bad])["reached"]
    assert roofline.conclude([good, bad]) == {"rank": 0.95, "error": 0.3, "reached": False}
    assert roofline.conclude([]) == {}


def test_decoding_with_a_cache_is_measured_by_module():
    """What is traced and what the engine runs go by the same paths, the extended cache among them."""
    model = tiny()
    past = [torch.randn(1, 2, 6, 8) for _ in range(4)]
    inputs = {"input_ids": torch.full((1, 1), 5), "position_ids": torch.full((1, 1), 6)}
    counted = Counted(model, inputs, past, threads=1)
    profile = summarise(counted.rounds(3))
    told = found(model, cache_tokens=6)
    outcome = roofline.compare(roofline.CASES[-1], told, profile)
    assert outcome["covered"] > 0.8
    assert {f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qkvo"} <= set(
        profile.modules
    )
    with torch.no_grad():
        wanted = model(**inputs, past_key_values=filled_cache(past)).logits
    given = compile_counted(counted.graph)(counted.feeds)[0]
    assert torch.allclose(torch.from_numpy(given), wanted, atol=1e-4)


def test_an_anew_written_cache_is_a_copy():
    model = tiny()
    told = found(model, cache_tokens=6)
    copies = [row for row in told.rows if row.kind == "copy" and row.module.endswith("self_attn") and row.name == "cat"]
    held = 2 * 7 * 8 * 4  # of one layer's keys, in bytes
    assert sum(row.activation_bytes == 2 * held for row in copies) == 4
    assert told.total.cache_bytes == 4 * held  # what attention reads


def test_the_page():
    outcome = {"network": "n", "modules": 3, "rank": 0.91, "error": 0.2, "predicted_ms": 1.0, "measured_ms": 2.0}
    record = {"threads": None, "machine": "a machine"}
    device = {"peak": 1e11, "bandwidth": 2e10}
    lines = "\n".join(roofline.section({"points": [{**outcome, "covered": 1.0}], "record": record, "device": device}))
    assert "| n | 3 | 0.910 | 20% | 1.00 | 2.00 | 100% |" in lines
    assert "100 GFLOP/s and 20.0 GB/s" in lines


def test_bad_input(tmp_path):
    with pytest.raises(BadInput, match="at least one"):
        roofline.run(tmp_path / "roofline.json", passes=0)
