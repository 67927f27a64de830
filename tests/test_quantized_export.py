"""Quantized exports hold the rounded weights, run where float32 exports run, and stay near the network."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

import networks
import small
from isthmus.errors import BadInput
from isthmus.export import quantized
from isthmus.export.engines import engine_batches, export_network, load_runner, pool_numpy
from isthmus.export.quantized import check_precision, export_quantized
from isthmus.export.quantized_onnx import quantize_onnx
from isthmus.export.quantized_openvino import quantize_openvino
from isthmus.export.timing import time_exported
from isthmus.network import embed, saturates_int8
from isthmus.sites.discovery import discover
from isthmus.sites.surgery import narrow_model
from narrowed import uneven

TEXTS = small.sentences(24)
WIDTH = 24


@pytest.fixture(scope="module")
def network():
    """A BERT of one layer out of three, narrowed by another share at every site."""
    whole = networks.worded("bert")
    sites = [site for site in discover(whole) if site.kind != "vocabulary"]
    kept = {name: units for name, units in uneven(whole).items() if name != "vocabulary"}
    kept |= {"layers": [1], "width": list(range(WIDTH))}
    return whole.with_model(narrow_model(whole.model, sites, kept))


@pytest.fixture(scope="module")
def openvino_file(network, tmp_path_factory):
    pytest.importorskip("nncf")
    return export_network(network, "openvino", tmp_path_factory.mktemp("openvino"))


def embedded(network, engine, path, texts=TEXTS):
    (batch,) = engine_batches(network, texts, len(texts))
    hidden = load_runner(engine, path, threads=1)(batch)
    return pool_numpy(network.pooling, hidden, batch["attention_mask"], normalize=True)


def check_near(network, engine, path, least):
    found, expected = embedded(network, engine, path), embed(network, TEXTS)
    assert (found * expected).sum(1).min() > least
    assert np.abs(found - expected).max() > 1e-4


def matrices(network):
    kinds = (nn.Linear, nn.Embedding)
    # The pooler's output is not the one that is exported.
    found = {name: module for name, module in network.model.named_modules() if isinstance(module, kinds)}
    return {name: module.weight.detach().numpy() for name, module in found.items() if not name.startswith("pooler")}


def openvino_matrices(path):
    """The matrices of integers in a file, times their scales, as OpenVINO itself multiplies them out."""
    import openvino

    core = openvino.Core()
    products = [
        node
        for node in core.read_model(str(path)).get_ops()
        if node.get_type_name() == "Multiply"
        and node.input_value(0).get_node().get_type_name() == "Convert"
        and node.input_value(0).get_node().input_value(0).get_element_type().get_type_name() in ("i4", "i8")
    ]
    found = core.compile_model(openvino.Model([node.output(0) for node in products], [], ""), "CPU")({})
    return [np.array(found[index]) for index in range(len(products))]


def rounded(weight, bits, group):
    """Symmetric rounding in which the entry of largest magnitude takes the lowest integer."""
    parts = weight.reshape(len(weight), -1, group).astype(float)
    places = np.abs(parts).argmax(-1)[..., None]
    scale = np.take_along_axis(parts, places, -1) / -(2 ** (bits - 1))
    return np.clip(np.rint(parts / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


@pytest.mark.parametrize(("precision", "bits", "group"), [("int8", 8, WIDTH), ("int4", 4, 8)])
def test_openvino_weights_are_rounded_by_their_formula(
    precision, bits, group, network, openvino_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("isthmus.export.quantized_openvino.LEAST_GROUP", 8)
    path = quantize_openvino(openvino_file, tmp_path, precision, [], group=8)
    found = openvino_matrices(path)
    readers = [weight for weight in matrices(network).values() if weight.shape[1] == WIDTH]
    # What no group divides is rounded to 8 bits with a zero point.
    divided = [weight for weight in matrices(network).values() if precision == "int8" or weight.shape[1] % group == 0]
    assert len(found) == len(divided) >= len(readers) > 3
    for weight in readers:
        expected = rounded(weight, bits, group)
        like = [one for one in found if one.size == expected.size]
        # Scales are halves: 11 digits.
        assert any(np.allclose(one.reshape(expected.shape), expected, rtol=2**-10, atol=1e-7) for one in like)


@pytest.mark.parametrize(("precision", "least"), [("w8a8", 0.99), ("int8", 0.999), ("int4", 0.9)])
def test_openvino_outputs_stay_near(precision, least, network, openvino_file, tmp_path, capfd):
    level = logging.getLogger("nncf").level
    batches = engine_batches(network, TEXTS, 1)
    path = quantize_openvino(openvino_file, tmp_path, precision, batches, group=8)
    check_near(network, "openvino", path, least)
    sizes = [file.with_suffix(".bin").stat().st_size for file in (path, openvino_file)]
    assert sizes[0] < 0.5 * sizes[1]
    assert capfd.readouterr().out == ""
    assert logging.getLogger("nncf").level == level


def test_w8a8_rounds_what_enters_every_linear_map(network, openvino_file, tmp_path):
    import openvino

    path = quantize_openvino(openvino_file, tmp_path, "w8a8", engine_batches(network, TEXTS, 1))
    nodes = openvino.Core().read_model(str(path)).get_ops()
    assert len(openvino_matrices(path)) == len(matrices(network))
    products = [node for node in nodes if node.get_type_name() == "MatMul"]
    linear = [node for node in products if node.input_value(1).get_node().get_type_name() == "Multiply"]
    assert len(linear) == sum(isinstance(module, nn.Linear) for module in network.model.modules()) - 1
    assert {node.input_value(0).get_node().get_type_name() for node in linear} == {"FakeQuantize"}


def test_onnx_weights_are_rounded_by_their_formula(network, tmp_path, caplog):
    import onnx

    path = export_quantized(network, "onnxruntime", "int8", [], tmp_path)
    graph = onnx.load(str(path)).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    names = [name.removesuffix("_quantized") for name in held if name.endswith("_quantized")]
    found = [held[f"{name}_quantized"] * held[f"{name}_scale"].astype(float) for name in names]
    assert len(found) == len(matrices(network))
    for name, module in network.model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("pooler"):
            weight = module.weight.detach().numpy().T.astype(float)
            # Of 7 bits where sums of products of 8 could saturate, ONNX Runtime takes 128 steps of 255.
            scale = np.abs(weight).max(0) / (64 if saturates_int8() else 127)
            expected = np.rint(weight / scale) * scale
            like = [one for one in found if one.shape == weight.shape]
            assert any(np.allclose(one, expected, rtol=1e-5, atol=1e-7) for one in like), name
    check_near(network, "onnxruntime", path, 0.99)
    assert "pre-processing" not in caplog.text


def test_quantized_files_are_timed_next_to_whole_ones(network, openvino_file, tmp_path):
    path = export_quantized(network, "openvino", "w8a8", TEXTS, tmp_path)
    batches = engine_batches(network, TEXTS[:4], 4)
    timed = time_exported({"whole": openvino_file, "w8a8": path}, batches, engine="openvino", rounds=2, threads=1)
    assert all(one.median_ms > 0 for one in timed.values())
    # Calibration took the texts one by one, so nothing of it depends on what stands beside a text.
    np.testing.assert_allclose(embedded(network, "openvino", path)[:1], embedded(network, "openvino", path, TEXTS[:1]))


def test_calibration_texts_are_spread_over_those_given(network, monkeypatch):
    monkeypatch.setattr(quantized, "CALIBRATION_EXAMPLES", 3)
    found = quantized._calibration(network, TEXTS[:9])
    expected = engine_batches(network, [TEXTS[0], TEXTS[4], TEXTS[8]], 1)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["input_ids"], other["input_ids"])


def test_precisions_that_cannot_be_had(network, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: real("json" if name == "nncf" else name))
    for engine, precision, message in (
        ("openvino", "w8a9", "precision 'w8a9' is unknown to openvino; did you mean w8a8"),
        ("openvino", "INT-4", "did you mean int4"),
        ("onnxruntime", "w8a8", "unknown to onnxruntime; it has float32, int8"),
        ("opnvino", "w8a8", "did you mean openvino"),
    ):
        with pytest.raises(BadInput, match=message):
            export_quantized(network, engine, precision, TEXTS, tmp_path / "out")
    with pytest.raises(BadInput, match="precision w8a8: no examples to calibrate on; give some"):
        export_quantized(network, "openvino", "w8a8", [], tmp_path / "out")
    with pytest.raises(BadInput, match="has no tokenizer"):
        export_quantized(replace(network, tokenizer=None), "openvino", "w8a8", TEXTS, tmp_path / "out")
    with pytest.raises(BadInput, match=r"group 0: .* give for example 32"):
        export_quantized(network, "openvino", "int4", TEXTS, tmp_path / "out", group=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else real(name))
    with pytest.raises(BadInput, match=r"nncf is not installed; pip install 'isthmus\[quantized\]'"):
        export_quantized(network, "openvino", "int4", TEXTS, tmp_path / "out")
    check_precision("openvino", "float32")
    check_precision("onnxruntime", "int8")
    assert not (tmp_path / "out").exists()


def test_reduced_range_takes_seven_bits(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "whole.onnx")
    for reduce, largest in ((False, 127), (True, 64)):
        path = quantize_onnx(tmp_path / "whole.onnx", tmp_path / str(reduce), reduce_range=reduce)
        held = {one.name: numpy_helper.to_array(one) for one in onnx.load(str(path)).graph.initializer}
        assert np.abs(held["w_quantized"].astype(int)).max() == largest


@pytest.mark.parametrize(
    ("architecture", "has", "saturates"),
    [("x86_64", (), True), ("x86_64", ("avx512_vnni",), False), ("x86_64", ("avx_vnni",), False),
     ("x86_64", ("amx_int8",), False), ("aarch64", (), False)],
)  # fmt: skip
def test_which_processors_saturate(architecture, has, saturates, monkeypatch):
    found = {"architecture": architecture, "avx2": True, **dict.fromkeys(has, True)}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found)
    assert saturates_int8() is saturates


@pytest.mark.parametrize(("saturates", "largest"), [(True, 64), (False, 127)])
def test_where_products_saturate_weights_have_seven_bits(network, tmp_path, monkeypatch, saturates, largest):
    import onnx

    monkeypatch.setattr("isthmus.export.quantized.saturates_int8", lambda: saturates)
    graph = onnx.load(str(export_quantized(network, "onnxruntime", "int8", [], tmp_path))).graph
    linear = {tuple(one.weight.T.shape) for one in network.model.modules() if isinstance(one, nn.Linear)}
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    held = [array for name, array in arrays.items() if name.endswith("_quantized") and array.shape in linear]
    assert held
    assert max(np.abs(one.astype(int)).max() for one in held) == largest
