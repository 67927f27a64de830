"""Exported networks give what the eager ones give, narrowed or not."""

from __future__ import annotations

import numpy as np
import pytest

from isthmus.errors import BadInput, IsthmusError
from isthmus.export.bench import bench_networks
from isthmus.export.engines import (
    ENGINES,
    Engine,
    engine_embed,
    export_network,
    find_engine,
    load_runner,
    pool_numpy,
)
from isthmus.export.timing import time_exported
from isthmus.network import Network, embed
from test_cost import CASES, random_kept, sites_of, tiny_model

WORDS = ["the", "of", "and", "a", "to", "in", "is", "it", "for", "on", "with", "as", "at", "by", "this", "that", "was"]
# Each exporter takes seconds, so every family goes through one engine and the odd ones through both.
EXPORTED = [
    *((name, "openvino") for name in CASES if name.endswith("Model")),
    ("BertForSequenceClassification", "onnxruntime"),
    ("MPNetModel", "onnxruntime"),
    ("ModernBertForSequenceClassification", "onnxruntime"),
]


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "<pad>", "</s>", "[UNK]"]
    vocabulary = {token: index for index, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_network(name, narrowed=False):
    from isthmus.sites.surgery import narrow_model

    model = tiny_model(name)
    if narrowed:
        sites = sites_of(model)
        kept = random_kept(sites, 3)
        kept["layers"] = [0, 2]
        model = narrow_model(model, sites, kept)
    pooling = "logits" if name.endswith("Classification") else "mean"
    return Network(name, model, None, pooling, True, 32)


def batch_of(rows, length):
    generator = np.random.default_rng(0)
    mask = np.ones((rows, length), dtype=np.int64)
    mask[-1, -2:] = 0
    ids = generator.integers(3, 60, (rows, length))
    return {"input_ids": np.where(mask == 1, ids, 1), "attention_mask": mask}


def eager(network, batch):
    import torch

    with torch.no_grad():
        output = network.model(**{name: torch.from_numpy(array) for name, array in batch.items()})
    return (output.logits if network.pooling == "logits" else output.last_hidden_state).numpy()


@pytest.mark.parametrize(("name", "engine"), EXPORTED)
def test_engine_equals_eager(name, engine, tmp_path):
    network = tiny_network(name, narrowed=True)
    runner = load_runner(engine, export_network(network, engine, tmp_path), threads=1)
    for rows, length in ((1, 4), (3, 17), (5, 30)):
        batch = batch_of(rows, length)
        expected = eager(network, batch)
        found = runner(batch)
        assert found.shape == expected.shape
        # What padding rows hold is nobody's business.
        open_rows = slice(None) if network.pooling == "logits" else batch["attention_mask"] == 1
        np.testing.assert_allclose(found[open_rows], expected[open_rows], atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_embeds_as_eager(engine, tmp_path, capfd):
    network = Network("tiny", tiny_model("BertModel"), tiny_tokenizer(), "mean", True, 32)
    texts = ["the of and", "a", "this is a to in it for on with", "that was", "by this at"]
    found = engine_embed(network, engine, tmp_path, batch_size=2, threads=1)(texts)
    np.testing.assert_allclose(found, embed(network, texts, batch_size=2), atol=1e-5)
    assert capfd.readouterr().out == ""


def test_exported_networks_are_timed_in_a_process_of_their_own(tmp_path):
    networks = {"whole": tiny_network("BertModel"), "narrowed": tiny_network("BertModel", narrowed=True)}
    paths = {name: export_network(network, "openvino", tmp_path / name) for name, network in networks.items()}
    batches = [batch_of(2, 8), batch_of(2, 12)]
    for given in (batches, dict.fromkeys(paths, batches)):  # shared, or by network
        said = []
        timed = time_exported(
            paths, given, engine="openvino", rounds=3, threads=1, progress=lambda *at, said=said: said.append(at)
        )
        assert list(timed) == list(paths)
        assert all(0 < one.low_ms <= one.median_ms <= one.high_ms and one.rounds == 3 for one in timed.values())
        assert said == [(at, 4) for at in range(1, 5)]


def test_a_timing_that_fails_says_why(tmp_path):
    (tmp_path / "openvino_model.xml").write_text("no graph")
    with pytest.raises(IsthmusError, match=r"latency: the process .* failed: .+") as caught:
        time_exported({"broken": tmp_path / "openvino_model.xml"}, [batch_of(2, 8)], engine="openvino")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="did you mean"):
        time_exported({}, [], engine="opnvino")


def test_pooling():
    hidden = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    mask = np.array([[1, 1, 0]])
    np.testing.assert_allclose(pool_numpy("mean", hidden, mask), hidden[:, :2].mean(1))
    np.testing.assert_allclose(pool_numpy("cls", hidden, mask), hidden[:, 0])
    assert pool_numpy("logits", hidden[:, 0], mask, normalize=True).sum() == 6
    np.testing.assert_allclose(np.linalg.norm(pool_numpy("mean", hidden, mask, normalize=True)), 1, rtol=1e-6)


def test_unknown_and_missing_engines(monkeypatch):
    with pytest.raises(BadInput, match="did you mean openvino"):
        find_engine("opnvino")
    with pytest.raises(BadInput, match="did you mean onnxruntime"):
        find_engine("onnx")
    with pytest.raises(BadInput, match="the engines are"):
        find_engine("zzz")
    monkeypatch.setitem(ENGINES, "absent", Engine("absent", ("no_such_package",), (), "a:b", "a:b"))
    with pytest.raises(BadInput, match="pip install no_such_package"):
        find_engine("absent")


@pytest.mark.parametrize("engine", ENGINES)
def test_bench(engine):
    tokenizer = tiny_tokenizer()
    networks = [
        Network("tiny", tiny_network("BertModel").model, tokenizer, "mean", True, 32),
        Network("tinier", tiny_network("BertModel", narrowed=True).model, tokenizer, "mean", True, 32),
    ]
    texts = ["the of and", "a to in", "is it for on with as", "at by"] * 3
    rows = bench_networks(networks, texts, engine=engine, batch=4, rounds=2, threads=1)
    assert [row["name"] for row in rows] == ["tiny", "tinier"]
    for row in rows:
        assert row["latency_spread"][0] <= row["latency_ms"] <= row["latency_spread"][1]
        assert row["peak_bytes"] > 0
        assert row["length"] == pytest.approx(3.5)
    assert rows[1]["params"] < rows[0]["params"]
    assert rows[1]["macs"] < rows[0]["macs"]


def test_bench_without_texts():
    with pytest.raises(BadInput, match="no examples"):
        bench_networks([tiny_network("BertModel")], [])
