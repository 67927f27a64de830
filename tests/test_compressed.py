"""Folders in the compressed-tensors layout, read back by plain arithmetic and, where it is there, by the library."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import networks
from isthmus.bottlenecks.bits.comq import Comq
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.bits.gptq import Gptq
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.export.compressed import write_compressed_tensors
from isthmus.export.integers import own_integers, pack_words, round_to_nearest, shared_group
from isthmus.network import embed
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.sites.discovery import discover
from isthmus.sites.surgery import narrow_model
from isthmus.storage.artifact import save_artifact
from isthmus.storage.blobs import pack
from isthmus.storage.coded import Uniform, decode, scale_of
from isthmus.storage.holders import with_codes
from isthmus.storage.opening import open as open_network
from narrowed import narrowed
from small import write_network

TEXTS = ["two wide strips of land", "water between", "a bridge", "walk over the narrow row of the water be"]
FAMILIES = ["bert", "distilbert", "mpnet", "electra", "modernbert-classifier"]


def unpacked(tensors, name, bits):
    """The matrix that a name stands for, digit by digit from the words."""
    words = tensors[f"{name}.weight_packed"].numpy().astype(np.int64) % 2**32
    rows, columns = tensors[f"{name}.weight_shape"].tolist()
    held = 32 // bits
    matrix = np.empty((rows, columns))
    scales = tensors[f"{name}.weight_scale"].double().numpy()
    group = columns // scales.shape[1]
    for row in range(rows):
        for column in range(columns):
            digit = int(words[row, column // held]) // 2 ** (bits * (column % held)) % 2**bits
            matrix[row, column] = (digit - 2 ** (bits - 1)) * scales[row, column // group]
    return matrix


def read_back(network, folder, bits):
    """The network with the weights that its folder holds."""
    tensors = load_file(folder / "model.safetensors")
    names = {key.removesuffix(".weight_packed") for key in tensors if key.endswith(".weight_packed")}
    state = {key: tensor.float() for key, tensor in tensors.items() if "weight_" not in key}
    state |= {f"{name}.weight": torch.from_numpy(unpacked(tensors, name, bits)).float() for name in names}
    model = type(network.model)(network.model.config)
    assert model.load_state_dict(state, strict=False).unexpected_keys == []
    return network.with_model(model.eval()), names


def widths(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_words_hold_the_digits_lowest_first():
    np.testing.assert_array_equal(pack_words(np.array([[-8, 7, 0]], np.int32), 4), [[0x8F0]])
    np.testing.assert_array_equal(
        pack_words(np.array([[-128, 127, 0, 1, -1]], np.int32), 8), [[0x8180FF00 - 2**32, 0x7F]]
    )


@pytest.mark.parametrize(("bits", "columns"), [(4, 32), (4, 37), (8, 32), (8, 37)])
def test_words_are_those_of_the_library(bits, columns):
    library = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    integers = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, columns))
    theirs = library.pack_to_int32(torch.from_numpy(integers).to(torch.int8), bits)
    np.testing.assert_array_equal(pack_words(integers.astype(np.int32), bits), theirs.numpy())


def test_no_scale_of_the_same_kind_rounds_better():
    weight = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    integers, scales = round_to_nearest(weight, 4, 16, torch.float32)
    assert integers.min() >= -8
    assert integers.max() <= 7
    found = ((integers.reshape(6, 4, 16) * scales[..., None] - weight.reshape(6, 4, 16)) ** 2).sum(-1)
    for row in range(6):
        for group in range(4):
            part = weight[row, 16 * group : 16 * group + 16].astype(float)
            steps = np.linspace(0.3, 1.3, 2001) * np.abs(part).max() / 7
            errors = [((np.clip(np.round(part / step), -8, 7) * step - part) ** 2).sum() for step in steps]
            largest = ((np.clip(np.round(part / steps[1400]), -8, 7) * steps[1400] - part) ** 2).sum()
            assert steps[1400] == pytest.approx(np.abs(part).max() / 7)
            assert found[row, group] <= largest * (1 + 1e-5)
            assert found[row, group] <= 1.15 * min(errors)


def test_rows_of_nothing_stay_nothing():
    integers, scales = round_to_nearest(np.zeros((2, 8), np.float32), 4, 4, torch.float16)
    assert not integers.any()
    assert (scales > 0).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (8, None)])
def test_a_folder_holds_every_linear_map_to_half_a_step(name, bits, group, tmp_path):
    network = networks.worded(name)
    written = write_compressed_tensors(network, tmp_path / "small", bits, group)
    assert written.kept == written.taken == ()
    assert set(written.rounded) == set(widths(network.model))
    back, names = read_back(network, tmp_path / "small", bits)
    assert names == set(written.rounded)
    for name, module in widths(network.model).items():
        weight = module.weight.detach().numpy().reshape(module.out_features, -1, group or module.in_features)
        # The largest scale tried is 1.1 times the one at which nothing is cut off, the smallest cuts off 40 %.
        largest = np.abs(weight).max(-1, keepdims=True)
        error = np.abs(widths(back.model)[name].weight.detach().numpy().reshape(weight.shape) - weight)
        assert (error <= 0.4 * largest + 0.6 * largest / (2 ** (bits - 1) - 1)).all()
        if bits == 8:
            assert (error <= 0.56 * largest / 127).all()
    assert written.bytes == (tmp_path / "small" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("bits", "group"), [(4, 16), (8, None)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_gives_the_outputs_of_the_rounded_weights(name, bits, group, dtype, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModel, AutoModelForSequenceClassification, CompressedTensorsConfig

    network = networks.worded(name)
    write_compressed_tensors(network, tmp_path / "small", bits, group, dtype=dtype)
    back, _ = read_back(network, tmp_path / "small", bits)
    auto = AutoModelForSequenceClassification if name.endswith("classifier") else AutoModel
    unpack = {}
    if name.startswith("modern"):
        # transformers draws ModernBERT's missing weights and stumbles over packed ones; unpacked in reading, they are
        # of the file's own precision.
        unpack = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
        for parameter in back.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    expected = embed(back, TEXTS)
    opened = network.with_model(auto.from_pretrained(tmp_path / "small", dtype="float32", **unpack).eval())
    assert np.abs(expected - embed(network, TEXTS)).max() > 1e-3
    np.testing.assert_allclose(embed(opened, TEXTS), expected, atol=1e-4)


def test_config_says_the_layout_and_what_is_left_out(tmp_path):
    worded = networks.worded("bert")
    sizes = {"intermediate_size": 44, "vocab_size": len(worded.tokenizer)}
    network = replace(networks.tiny("bert", **sizes), tokenizer=worded.tokenizer)
    embed(network, TEXTS)
    written = write_compressed_tensors(network, tmp_path / "small", 4, 32)
    kept = [f"encoder.layer.{layer}.output.dense" for layer in range(3)]
    assert written.kept == tuple(kept)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 32,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": kept,
        "kv_cache_scheme": None,
    }
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    dense = network.model.get_submodule(kept[0]).weight
    np.testing.assert_array_equal(tensors[f"{kept[0]}.weight"], dense.detach().half())
    assert {path.name for path in (tmp_path / "small").iterdir()} >= {"tokenizer.json", "config.json"}
    assert network.model.config.to_dict().get("quantization_config") is None
    assert json.loads((tmp_path / "small" / "tokenizer.json").read_text())["padding"] is None


def test_a_code_that_fits_is_written_as_it_is(tmp_path):
    network = networks.worded("bert")
    generator = np.random.default_rng(0)
    fits, other = "encoder.layer.0.intermediate.dense.weight", "encoder.layer.1.intermediate.dense.weight"
    integers = generator.integers(-8, 8, (48, 32)).astype(np.int32)
    down = generator.integers(-70, -50, (48, 1)).astype(np.int32)
    across = generator.integers(-5, 5, (1, 2)).astype(np.int32)
    codes = {
        fits: Uniform(integers, (down, across)),
        other: Uniform(integers, (down, generator.integers(-5, 5, (1, 32)).astype(np.int32))),
    }
    coded = with_codes(network, codes)
    written = write_compressed_tensors(coded, tmp_path / "small", 4, 16, dtype="float32")
    assert written.taken == (fits.removesuffix(".weight"),)
    assert other.removesuffix(".weight") in written.rounded
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    np.testing.assert_allclose(unpacked(tensors, written.taken[0], 4), decode(codes[fits]), rtol=1e-6)
    np.testing.assert_array_equal(tensors[f"{written.taken[0]}.weight_scale"], scale_of(down) * scale_of(across))


def test_a_network_narrowed_by_the_same_everywhere_says_its_shape(tmp_path):
    network = networks.worded("bert")
    sites = discover(network)
    kept = {site.name: list(range(16)) for site in sites if site.kind == "neurons"} | {"layers": [0, 2]}
    small = network.with_model(narrow_model(network.model, sites, kept))
    write_compressed_tensors(small, tmp_path / "small", 8)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_hidden_layers"]) == (16, 2)
    assert (small.model.config.intermediate_size, small.model.config.num_hidden_layers) == (48, 3)
    config.pop("quantization_config")
    built = type(network.model)(type(network.model.config)(**config))
    back, _ = read_back(network.with_model(built), tmp_path / "small", 8)
    expected = embed(small, TEXTS)
    # 8 bits: what is left of the difference is rounding.
    assert (embed(back, TEXTS) * expected).sum(1).min() > 0.999


def test_uneven_networks_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"network bert: is narrowed unevenly.*narrowed by the same"):
        write_compressed_tensors(narrowed("bert"), tmp_path / "small")
    network = networks.worded("bert")
    sites = discover(network)
    kept = {site.name: [0, 1] for site in sites if site.kind == "heads"}
    fewer = network.with_model(narrow_model(network.model, sites, kept))
    with pytest.raises(BadInput, match="narrowed unevenly"):
        write_compressed_tensors(fewer, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_bad_options_leave_nothing(tmp_path):
    network = networks.tiny("bert")
    for options, message in (
        ({"bits": 3}, "bits 3: .* 4 or 8"),
        ({"group": -1}, "group -1: .* 0 for a scale a row"),
        ({"group": 7}, "group 7: divides the columns of no linear map"),
        ({"dtype": "int8"}, "dtype 'int8': is none of float16"),
    ):
        with pytest.raises(BadInput, match=message):
            write_compressed_tensors(network, tmp_path / "small", **options)
    large = networks.tiny("bert")
    with torch.no_grad():
        large.model.embeddings.LayerNorm.weight[0] = 1e6
    with pytest.raises(BadInput, match=r"embeddings.LayerNorm.weight: .* too large for float16"):
        write_compressed_tensors(large, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BadInput, match="not empty"):
        write_compressed_tensors(replace(network), tmp_path / "full")


def rows_of(weight, coder, setting):
    """The code of a matrix by its weights alone."""
    plain = MatrixStatistics(Sensitivity(np.ones(weight.shape[0]), np.ones(weight.shape[1])))
    return coder.code(weight, plain, setting)


@pytest.mark.parametrize(("coder", "group"), [(FineQuant(), 16), (FineQuant(), 0), (Gptq(), 16), (Comq(), 0)])
def test_a_narrowed_artifact_keeps_its_integers_and_opens_plainly(coder, group, tmp_path, capsys):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModel

    network = networks.worded("bert")
    sites = discover(network)
    kept = {site.name: list(range(32)) for site in sites if site.kind == "neurons"} | {"layers": [0, 2]}
    small = network.with_model(narrow_model(network.model, sites, kept))
    setting = Setting(4, group)
    codes = {
        f"{name}.weight": rows_of(module.weight.detach().numpy(), coder, setting)
        for name, module in widths(small.model).items()
    }
    save_artifact(with_codes(small, codes), tmp_path / "artifact", {})
    assert main(["export", str(tmp_path / "artifact"), "-o", str(tmp_path / "out"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert set(made["taken"]) == set(widths(small.model))
    assert made["rounded"] == made["kept"] == []
    assert made["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    scheme = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (scheme["strategy"], scheme["group_size"]) == (("group", 16) if group else ("channel", None))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name, code in codes.items():
        packed = tensors[f"{name}_packed"].numpy()
        np.testing.assert_array_equal(packed, pack_words(code.integers, 4))
    opened = network.with_model(AutoModel.from_pretrained(tmp_path / "out", dtype="float32").eval())
    expected = embed(open_network(tmp_path / "artifact"), TEXTS)
    # Scales are halves in the file: 2^-11 of each.
    np.testing.assert_allclose(embed(opened, TEXTS), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("columns", "blocks", "expected"),
    [((64, 96), (1, 1), 0), ((64, 96), (1, 3), 32), ((64, 64), (4, 1), 16), ((64, 64), (64, 64), None), ((), (), None)],
)
def test_the_group_is_the_largest_that_holds_every_code(columns, blocks, expected):
    generator = np.random.default_rng(0)
    codes = [
        (pack(Uniform(generator.integers(-8, 8, (4, c), dtype=np.int32), (np.zeros((4, b), np.int32),))), (4, c))
        for c, b in zip(columns, blocks, strict=True)
    ]
    assert shared_group(codes, 4) == expected
    beyond = pack(Uniform(np.full((4, 64), 8, np.int32), (np.zeros((4, 1), np.int32),)))
    assert shared_group([*codes, (beyond, (4, 64))], 4) == expected
    if expected is not None:
        assert all(own_integers(code, shape, 4, expected) is not None for code, shape in codes)


def test_the_command_refuses_bad_input_in_one_line_before_it_opens_anything(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out, options, words in (
        ("new", ["--layout", "compressed-tensor"], "did you mean compressed-tensors?"),
        ("new", ["--bits", "5"], "give one of these"),
        ("new", ["--bits", "four"], "--bits"),
        ("new", ["--group", "-3"], "0 for a scale a row"),
        ("full", [], "not empty"),
        ("new", [], "neither a folder"),
    ):
        assert main(["export", str(tmp_path / "nothing"), "-o", str(tmp_path / out), *options]) == 2
        printed, errors = capsys.readouterr()
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert printed == ""
        assert len(lines) == 1
        assert words in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_what_is_printed_counts_the_matrices(tmp_path, capsys):
    place = write_network(tmp_path / "tiny")
    assert main(["export", str(place), "--bits", "8", "--group", "32", "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    # The feed-forward layers have 48 inputs to their second map, which 32 does not divide: one in each of 3 layers.
    assert "of 19 linear maps 0 keep the integers of their codes, 16 were rounded to 8 bits, 3 stay" in out
