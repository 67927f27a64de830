"""Saved equals loaded, in isthmus and in plain libraries; sizes are predicted to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import networks
from isthmus import _loader
from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.network import Network, embed
from isthmus.sites.discovery import discover
from isthmus.sites.surgery import narrow_model
from isthmus.sites.vocabulary import fixed_tokens, narrow_tokenizer
from isthmus.storage.artifact import read_record, save_artifact
from isthmus.storage.narrowing import describe_narrowing
from isthmus.storage.opening import open as open_network
from isthmus.storage.weights import (
    header_bytes,
    predicted_bytes,
    read_header,
    saved_shapes,
    weight_bytes,
)
from narrowed import RECORD, auto, narrowed, uneven

TEXTS = ["A narrow strip of land.", "The isthmus lies between two seas, a bridge for wayfarers.", "x"]


@pytest.fixture(autouse=True)
def _registered() -> None:
    _loader.install()


@cache
def small_minilm() -> tuple[Network, list[int]]:
    """MiniLM with every site narrowed, vocabulary too, and the ids of the tokens that stayed."""
    network = open_network("minilm")
    sites = discover(network)
    kept = uneven(network)
    vocabulary = sorted({*fixed_tokens(network.tokenizer), *range(1996, 5000)})
    kept["vocabulary"] = vocabulary
    model = narrow_model(network.model, sites, kept)
    return network.with_model(model, narrow_tokenizer(network.tokenizer, vocabulary)), vocabulary


@pytest.fixture(scope="module")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    save_artifact(small_minilm()[0], folder, RECORD)
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    save_artifact(narrowed("bert"), folder, RECORD)
    return folder


def same_outputs(first: Any, second: Any) -> None:
    inputs = networks.tokens()
    limit = min(first.get_input_embeddings().num_embeddings, second.get_input_embeddings().num_embeddings)
    inputs["input_ids"] = inputs["input_ids"] % limit
    with torch.inference_mode():
        one, two = first(**inputs), second(**inputs)
    assert torch.equal(one[0], two[0])


@pytest.mark.parametrize("name", networks.NAMES)
def test_loaded_equals_saved(name: str, tmp_path: Path) -> None:
    network = narrowed(name)
    save_artifact(network, tmp_path / "small", RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    loaded = auto(name).from_pretrained(tmp_path / "small")
    assert loaded.dtype == torch.float32
    same_outputs(network.model, loaded)
    before, after = dict(network.model.named_parameters()), dict(loaded.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    modules = dict(loaded.named_modules())
    for path, module in network.model.named_modules():
        assert repr(module) == repr(modules[path])


@pytest.mark.parametrize("name", networks.NAMES)
def test_sizes_are_predicted_to_the_byte(name: str, tmp_path: Path) -> None:
    for network in (networks.tiny(name), narrowed(name)):
        shapes = saved_shapes(network.model)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save_artifact(network, folder, {})
        assert predicted_bytes(shapes) == weight_bytes(folder) == (folder / "model.safetensors").stat().st_size
        tensors = read_header(folder / "model.safetensors")
        assert {key: tuple(entry["shape"]) for key, entry in tensors.items()} == {k: s for k, (s, _) in shapes.items()}
        data = max(entry["data_offsets"][1] for entry in tensors.values())
        assert header_bytes(shapes) == weight_bytes(folder) - data


def test_sizes_of_mixed_types_and_tied_weights_are_predicted(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForMaskedLM

    tensors = {
        "b": torch.zeros(3, 5, dtype=torch.bfloat16),
        "a": torch.zeros(7, dtype=torch.int64),
        "c": torch.zeros((), dtype=torch.float32),
        "d": torch.zeros(2, 9, dtype=torch.uint8),
        "a2": torch.zeros(3, dtype=torch.float16),
        "e": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "mixed.safetensors", metadata={"format": "pt"})
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    assert predicted_bytes(shapes) == (tmp_path / "mixed.safetensors").stat().st_size
    assert read_header(tmp_path / "mixed.safetensors").keys() == tensors.keys()
    model = BertForMaskedLM(BertConfig(**networks.COMMON))
    model.save_pretrained(tmp_path / "tied")
    assert predicted_bytes(saved_shapes(model)) == weight_bytes(tmp_path / "tied")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet", "modernbert"])
def test_the_encoder_of_a_classifier_loads(family: str, tmp_path: Path) -> None:
    network = narrowed(f"{family}-classifier")
    save_artifact(network, tmp_path / "small", RECORD)
    base = getattr(network.model, network.model.base_model_prefix)
    same_outputs(base, auto(family).from_pretrained(tmp_path / "small"))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet", "modernbert"])
def test_a_classifier_on_a_narrowed_encoder_loads(family: str, tmp_path: Path) -> None:
    network = networks.tiny(family)
    kept = {site: units for site, units in uneven(network).items() if not site.startswith("feature")}
    network = network.with_model(narrow_model(network.model, discover(network), kept))
    save_artifact(network, tmp_path / "small", RECORD)
    loaded = auto("classifier").from_pretrained(tmp_path / "small", num_labels=5).eval()
    inputs = networks.tokens()
    inputs["input_ids"] = inputs["input_ids"] % loaded.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        if family not in ("bert", "roberta"):
            assert loaded(**inputs).logits.shape == (3, 5)
        states = getattr(loaded, loaded.base_model_prefix)(**inputs).last_hidden_state
        assert torch.equal(states, network.model(**inputs).last_hidden_state)


def test_saved_again_by_plain_transformers(artifact: Path, tmp_path: Path) -> None:
    first = auto("bert").from_pretrained(artifact)
    first.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"] == json.loads((artifact / "config.json").read_text())["quantization_config"]
    same_outputs(first, auto("bert").from_pretrained(tmp_path / "again"))


def test_narrowed_twice(artifact: Path, tmp_path: Path) -> None:
    network = Network("again", auto("bert").from_pretrained(artifact), None)
    smaller = network.with_model(narrow_model(network.model, discover(network), uneven(network, seed=5)))
    save_artifact(smaller, tmp_path / "smaller", RECORD)
    same_outputs(smaller.model, auto("bert").from_pretrained(tmp_path / "smaller"))
    assert weight_bytes(tmp_path / "smaller") < weight_bytes(artifact)


def test_which_layers_stay_is_read_from_the_layers(tmp_path: Path) -> None:
    for family, path in (("bert", "encoder.layer"), ("modernbert", "layers")):
        network = networks.tiny(family)
        model = narrow_model(network.model, discover(network), {"layers": [0, 2]})
        description = describe_narrowing(model)
        assert description is not None
        assert description["layers"] == {"module": path, "keep": [0, 2]}
        assert description["shapes"] == {}
    given = narrow_model(networks.tiny("distilbert").model, discover(networks.tiny("distilbert")), {"layers": [0, 2]})
    described = describe_narrowing(given, {"transformer.layer": [0, 2]})
    assert described is not None
    assert described["layers"] == {"module": "transformer.layer", "keep": [0, 2]}


def test_a_network_that_was_not_narrowed_is_a_plain_folder(tmp_path: Path) -> None:
    network = networks.tiny("bert")
    assert describe_narrowing(network.model) is None
    save_artifact(network, tmp_path / "whole", RECORD)
    assert "quantization_config" not in json.loads((tmp_path / "whole" / "config.json").read_text())
    same_outputs(network.model, auto("bert").from_pretrained(tmp_path / "whole"))


def test_a_model_that_its_config_cannot_describe_is_refused() -> None:
    model = networks.tiny("bert").model
    model.encoder.layer[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedNetwork, match="extra"):
        describe_narrowing(model)
    model = networks.tiny("bert").model
    model.pooler.dense = torch.nn.Linear(32, 99)
    with pytest.raises(UnsupportedNetwork, match="pooler"):
        describe_narrowing(model)


def test_casts_and_training_work_on_what_was_loaded(artifact: Path) -> None:
    model = auto("bert").from_pretrained(artifact)
    assert model.half().dtype == torch.float16
    assert model.float().dtype == torch.float32
    model.train()
    model(**{key: value % 60 for key, value in networks.tokens().items()})[0].sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "pooler" not in n)
    assert auto("bert").from_pretrained(artifact, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert auto("bert").from_pretrained(artifact, dtype="auto").dtype == torch.float32


def test_minilm_opens_everywhere(minilm_folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, pipeline

    network, _ = small_minilm()
    same_outputs(network.model, AutoModel.from_pretrained(minilm_folder))
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    assert tokenizer(TEXTS)["input_ids"] == network.tokenizer(TEXTS)["input_ids"]
    with torch.inference_mode():
        expected = network.model(**network.tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state.numpy()
    extracted = np.asarray(pipeline("feature-extraction", str(minilm_folder))(TEXTS[0]), dtype=np.float32)
    assert np.array_equal(extracted, expected)
    again = open_network(minilm_folder)
    assert (again.pooling, again.normalize, again.max_length) == ("mean", True, network.max_length)
    assert again.record["seed"] == 3
    assert np.array_equal(embed(again, TEXTS), embed(network, TEXTS))


def test_minilm_opens_in_sentence_transformers(minilm_folder: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    network, _ = small_minilm()
    model = sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu")
    expected = embed(network, TEXTS)
    width = expected.shape[1]
    assert width < 384
    measure = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    assert measure() == width
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-6)


def test_the_same_network_gives_the_same_files(minilm_folder: Path, tmp_path: Path) -> None:
    network, _ = small_minilm()
    network.tokenizer(TEXTS, padding=True, truncation=True, max_length=7)
    save_artifact(network, tmp_path / "small", RECORD)
    assert read_record(tmp_path / "small") == read_record(minilm_folder)


def test_sizes_of_minilm_are_predicted(minilm_folder: Path) -> None:
    assert predicted_bytes(saved_shapes(small_minilm()[0].model)) == weight_bytes(minilm_folder)
    original = open_network("minilm")
    assert original.source is not None
    shapes = {
        key: (tuple(e["shape"]), e["dtype"]) for key, e in read_header(original.source / "model.safetensors").items()
    }
    assert abs(predicted_bytes(shapes) - weight_bytes(original.source)) < 200


def test_a_folder_with_modules_that_read_the_width_stays_plain(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"x.{k}"} for i, (p, k) in enumerate(kinds)]
    (source / "modules.json").write_text(json.dumps(modules))
    save_artifact(replace(narrowed("bert"), source=source), tmp_path / "small", {})
    assert not (tmp_path / "small" / "modules.json").exists()
    (source / "modules.json").write_text("[")
    with pytest.raises(BadInput, match=r"modules\.json"):
        save_artifact(replace(narrowed("bert"), source=source), tmp_path / "other", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "source"]


SCRIPT = """
import sys, torch
{imports}
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
print(model.encoder.layer[0].intermediate.dense.out_features, len(model.encoder.layer))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import isthmus._loader as l; l.install(); assert 'transformers' not in sys.modules",
        "import transformers.models.auto.modeling_auto; import isthmus._loader as l; l.install(); l.install()",
        "import transformers.quantizers.auto; import isthmus._loader as l; l.install(); l.install()",
    ],
)
def test_either_order_of_imports(artifact: Path, imports: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(imports=imports), str(artifact)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    model = auto("bert").from_pretrained(artifact)
    assert done.stdout.split() == [str(model.encoder.layer[0].intermediate.dense.out_features), "2"]


def test_the_hook_leaves_no_trace() -> None:
    code = (
        "import isthmus._loader as l, sys, inspect; l.install(); l.install()\n"
        "assert sum(type(f).__module__ == 'isthmus._loader' for f in sys.meta_path) == 1\n"
        "import transformers.quantizers.auto as a, transformers.models.auto.modeling_auto as m\n"
        "assert not any(type(f).__module__ == 'isthmus._loader' for f in sys.meta_path)\n"
        "assert type(a.__loader__).__name__ == type(a.__spec__.loader).__name__ == 'SourceFileLoader'\n"
        "assert 'isthmus' in a.AUTO_QUANTIZER_MAPPING and 'AutoHfQuantizer' in inspect.getsource(a)\n"
        "from transformers import AutoConfig, AutoModelForImageClassification\n"
        "config = AutoConfig.for_model('isthmus_cifar_resnet', blocks=1, num_labels=3)\n"
        "assert AutoModelForImageClassification.from_config(config).config.num_labels == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
