"""Rates predicted from shapes against what narrowed networks really have, and timing."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest

from isthmus.cost.latency import Latency, measure_latency
from isthmus.cost.latency_table import FEATURES, choose_variants, fit_table, latency_table
from isthmus.cost.measure import count_parameters, high_water, measure_macs
from isthmus.cost.predict import (
    bytes_rate,
    example_inputs,
    kept_counts,
    macs_rate,
    parameter_rate,
    predicted_shapes,
    saved_tensors,
)
from isthmus.cost.rates import Rate, Term, presence, rescale

FAMILIES = ("Bert", "Roberta", "DistilBert", "MPNet", "Electra", "ModernBert")
CASES = [f"{family}Model" for family in FAMILIES] + [f"{family}ForSequenceClassification" for family in FAMILIES]


def tiny_model(name):
    import torch
    import transformers

    torch.manual_seed(0)
    family = name.removesuffix("Model").removesuffix("ForSequenceClassification")
    sizes = {"vocab_size": 60, "max_position_embeddings": 40}
    if family == "DistilBert":
        sizes |= {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    if family == "Electra":
        sizes["embedding_size"] = 16
    if family == "ModernBert":
        sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**sizes)
    return getattr(transformers, name)(config).eval()


def sites_of(model):
    from isthmus.network import Network
    from isthmus.sites.discovery import discover

    return discover(Network("tiny", model, None))


def random_kept(sites, seed):
    generator = random.Random(seed)
    kept = {}
    for site in sites:
        count = generator.randint(site.minimum, site.units)
        kept[site.name] = sorted(generator.sample(range(site.units), count))
    return kept


@pytest.mark.parametrize("name", CASES)
def test_predicted_equals_narrowed(name):
    from isthmus.sites.surgery import narrow_model

    model = tiny_model(name)
    sites = sites_of(model)
    params, size, macs = parameter_rate(model, sites), bytes_rate(model, sites), macs_rate(model, sites, 12)
    for seed in range(4):
        kept = random_kept(sites, seed) if seed else {}
        counts = kept_counts(sites, kept)
        narrowed = narrow_model(model, sites, kept)
        assert params(counts) == count_parameters(narrowed)
        assert size(counts) == sum(t.numel() * t.element_size() for t in saved_tensors(narrowed).values())
        assert macs(counts) == pytest.approx(measure_macs(narrowed, example_inputs(narrowed, 12)), abs=0.5)
        shapes = {key: tuple(tensor.shape) for key, tensor in saved_tensors(narrowed).items()}
        assert predicted_shapes(model, sites, kept) == shapes


def test_macs_count_attention_and_the_pooler_once():
    model = tiny_model("BertModel")
    length, width, neurons = 10, 32, 48
    per_layer = length * (4 * width * width + 2 * width * neurons) + 2 * length * length * width
    assert measure_macs(model, example_inputs(model, length)) == 3 * per_layer + width * width


def test_saved_tensors_are_those_of_the_file(tmp_path):
    from safetensors import safe_open

    model = tiny_model("RobertaForSequenceClassification")
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert shapes == predicted_shapes(model, sites_of(model), None)


def test_rates_take_tensors_and_rescale():
    import torch

    rate = rescale(Rate("params", (Term(2.0, ("a", presence(0))), Term(3.0))), 2.0)
    kept = {"a": torch.tensor(4.0, requires_grad=True), presence(0): torch.tensor(1.0)}
    total = rate(kept)
    total.backward()
    assert float(total) == 22.0
    assert float(kept["a"].grad) == 4.0


def test_latency_is_interleaved_and_ordered():
    order = []

    def runner(name, seconds):
        def run(batch):
            order.append(name)
            time.sleep(seconds)

        return run

    result = measure_latency(
        {"slow": runner("slow", 0.004), "quick": runner("quick", 0.001)}, [{}, {}], rounds=3, stretch=1
    )
    assert isinstance(result["slow"], Latency)
    assert result["slow"].median_ms > result["quick"].median_ms >= 1.0
    assert all(one.low_ms <= one.median_ms <= one.high_ms for one in result.values())
    assert all(set(order[i : i + 2]) == {"slow", "quick"} for i in range(0, len(order), 2))
    with pytest.raises(ValueError, match="at least one"):
        measure_latency({}, [])


def test_table_finds_the_costs_it_is_given(tmp_path):
    model = tiny_model("BertModel")
    sites = sites_of(model)
    true = dict(zip(FEATURES, (0.5, 0.01, 0.2, 0.001, 0.05, 0.002, 0.004, 0.0003), strict=True))
    variants = choose_variants(sites)
    table = fit_table(sites, variants, [1.0] * len(variants), key="k", engine="openvino", batch=32)
    truth = table.__class__(**{**table.__dict__, "coefficients": tuple(true.values())}).rate(sites)
    measured = [truth(kept_counts(sites, kept)) for kept in variants]
    fitted = fit_table(sites, variants, measured, key="k", engine="openvino", batch=32)
    assert fitted.error_max < 1e-6
    for seed in range(5):
        counts = kept_counts(sites, random_kept(sites, seed))
        assert fitted.rate(sites)(counts) == pytest.approx(truth(counts), rel=0.05)


def test_table_is_kept_and_a_broken_one_timed_again(tmp_path):
    sites = sites_of(tiny_model("DistilBertModel"))
    built = []

    def build(kept):
        built.append(kept)
        return lambda batch: time.sleep(1e-4)

    def measure(runners, batches, rounds, progress):
        return measure_latency(runners, batches, rounds=rounds, progress=progress)

    batches = [{"input_ids": np.ones((2, 5), dtype=np.int64)}]
    first = latency_table(sites, build, measure, batches, fingerprint="f", engine="openvino", batch=2, folder=tmp_path)
    times = len(built)
    again = latency_table(sites, build, measure, batches, fingerprint="f", engine="openvino", batch=2, folder=tmp_path)
    assert len(built) == times > 1
    assert again.rate(sites) == first.rate(sites)
    (file,) = tmp_path.iterdir()
    data = json.loads(file.read_text())
    data["coefficients"][0] = "much"
    file.write_text(json.dumps(data))
    latency_table(sites, build, measure, batches, fingerprint="f", engine="openvino", batch=2, folder=tmp_path)
    assert len(built) == 2 * times


def test_high_water_rises_with_memory():
    before = high_water()
    block = np.ones(200_000_000, dtype=np.uint8)
    assert high_water() - before > 50_000_000
    del block
