"""The roofline: operators against independent counts and closed formulas, devices, fits, the command, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.cost.measure import macs_by_module
from isthmus.cost.roofline.analysis import analyse, layer_of
from isthmus.cost.roofline.devices import DEVICES, Device, find_device
from isthmus.cost.roofline.efficiency import Curve, Work, fit, probe_work
from isthmus.cost.roofline.elements import elements
from isthmus.cost.roofline.joining import joined
from isthmus.cost.roofline.machine import device_from, measured_device
from isthmus.cost.roofline.operators import Product
from isthmus.cost.roofline.phases import most_tokens, trace_phase
from isthmus.cost.roofline.probes import PROBES, STREAM, Probe, macs
from isthmus.cost.roofline.tracing import on_meta, trace
from isthmus.errors import BadInput, UnsupportedNetwork

LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 50}
FLOAT = elements("float32")
SLOW = Device("slow", {"float32": 1e9, "bfloat16": 2e9, "int8": 4e9}, 1e9, "made up")


def llama(heads=2, **sizes):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, "num_key_value_heads": heads, **sizes})).eval()


def one(kernels, kind):
    (found,) = [kernel for kernel in kernels if kernel.kind == kind]
    return found


def meta(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device="meta")


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


# --- operators against closed formulas


def test_a_linear_map():
    (kernel,) = trace(on_meta(Wrapped(nn.Linear(30, 20))), {"x": meta(4, 5, 30)}).operators
    assert (kernel.kind, kernel.module, kernel.macs, kernel.flops) == ("linear", "inner", 4 * 5 * 30 * 20, 2 * 12000)
    assert (kernel.weights, kernel.parameters, kernel.reads, kernel.writes) == (600, 20, 600, 400)
    assert kernel.product == Product(1, 20, 20, 30)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_convolution(groups):
    model = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    (kernel,) = trace(on_meta(Wrapped(model)), {"x": meta(2, 8, 10, 12)}).operators
    assert kernel.kind == ("depthwise" if groups == 8 else "convolution")
    assert kernel.macs == 2 * 16 * (8 // groups) * 9 * 5 * 6
    assert (kernel.weights, kernel.reads, kernel.writes) == (16 * 8 // groups * 9, 2 * 8 * 120, 2 * 16 * 30)


def test_a_transposed_convolution():
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.ConvTranspose2d(6, 10, 3, stride=2)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 6, 5, 7))
    traced = trace(on_meta(Wrapped(model)), {"x": meta(2, 6, 5, 7)})
    assert traced.macs == 2 * 35 * 6 * 10 * 9 == counter.get_total_flops() // 2


def test_an_embedding_reads_only_its_rows():
    model = Wrapped(nn.Embedding(1000, 16))
    (kernel,) = trace(on_meta(model), {"x": meta(2, 7, dtype=torch.long)}).operators
    assert (kernel.parameters, kernel.writes, kernel.index_bytes) == (2 * 7 * 16, 2 * 7 * 16, 2 * 7 * 8)


def test_attention_of_an_encoder():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64, vocab_size=30)
    traced = trace_phase(on_meta(BertModel(config)), "encode", batch=3, tokens=10)
    kernel = one(traced.operators, "attention")
    assert kernel.macs == 2 * 3 * 10 * 10 * 48
    assert (kernel.reads, kernel.writes, kernel.cache_reads) == (3 * 3 * 10 * 48, 3 * 10 * 48, 0)


def test_grouped_query_decode_with_a_cache():
    batch, before, size = 3, 11, 8
    traced = trace_phase(on_meta(llama()), "decode", batch=batch, cache_tokens=before)
    kernels = [kernel for kernel in traced.operators if kernel.kind == "attention"]
    assert len(kernels) == 2
    for kernel in kernels:
        assert kernel.macs == 2 * batch * 8 * 1 * (before + 1) * size  # all eight heads multiply
        assert kernel.cache_reads == 2 * batch * 2 * (before + 1) * size  # only two are kept
        assert kernel.reads == batch * 8 * size
    appended = [kernel for kernel in traced.operators if kernel.kind == "cache"]
    assert sum(kernel.cache_writes for kernel in appended) == 2 * 2 * batch * 2 * size
    assert traced.cache == 2 * 2 * batch * 2 * (before + 1) * size
    linear = batch * (2 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 96) + 64 * 50)
    assert traced.macs == linear + sum(kernel.macs for kernel in kernels)


def test_prefill_fills_the_cache():
    traced = trace_phase(on_meta(llama()), "prefill", batch=2, tokens=9)
    assert traced.cache == 2 * 2 * 2 * 2 * 9 * 8
    assert sum(kernel.cache_writes for kernel in traced.operators) == traced.cache
    assert sum(kernel.cache_reads for kernel in traced.operators) == traced.cache


# --- against torch's counter, on whole networks


def networks():
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ids = torch.ones((2, 9), dtype=torch.long)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=40, **small))
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **small))
    resnet = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1]))
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40))
    return {
        "bert": (bert, {"input_ids": ids}),
        "vit": (vit, {"pixel_values": torch.zeros(2, 3, 32, 32)}),
        "resnet": (resnet, {"pixel_values": torch.zeros(1, 3, 64, 48)}),
        "llama": (llama(), {"input_ids": ids}),
        "gpt2": (gpt, {"input_ids": ids}),
    }


@pytest.mark.parametrize("name", ["bert", "vit", "resnet", "llama", "gpt2"])
def test_macs_are_those_of_torch(name):
    model, inputs = networks()[name]
    wanted = macs_by_module(model, inputs)
    traced = trace(on_meta(model), {key: tensor.to("meta") for key, tensor in inputs.items()})
    found = traced.macs_by_module()
    assert {path: found.get(path) for path in wanted} == wanted
    assert sum(kernel.macs for kernel in joined(traced)) == wanted[""]


def test_a_narrowed_network_is_counted_as_it_is():
    from isthmus.network import Network
    from isthmus.sites.discovery import discover
    from isthmus.sites.surgery import narrow_model

    model, inputs = networks()["bert"]
    sites = discover(Network("tiny", model, None))
    kept = {site.name: tuple(range(max(site.minimum, site.units // 2))) for site in sites if site.kind != "layers"}
    narrowed = narrow_model(model, sites, kept)
    traced = trace(on_meta(narrowed), {"input_ids": inputs["input_ids"].to("meta")})
    assert traced.macs == macs_by_module(narrowed, inputs)[""]
    weights = sum(module.weight.numel() for module in narrowed.modules() if isinstance(module, nn.Linear))
    assert sum(kernel.weights for kernel in traced.operators) == weights


def test_joining_leaves_macs_and_takes_what_goes_between():
    traced = trace_phase(on_meta(networks()["bert"][0]), "encode", tokens=6)
    kernels = joined(traced)
    inner = next(kernel for kernel in kernels if kernel.module.endswith("0.intermediate.dense"))
    assert inner.joined == ("gelu",)
    assert (inner.reads, inner.writes) == (6 * 32, 6 * 48)
    apart, together = (sum(one.reads + one.writes for one in group) for group in (traced.operators, kernels))
    assert apart - together == 2 * 2 * 6 * 48 + 2 * 32 + 2 * 6 * 32  # gelus, the pooler's tanh, a sum of embeddings


def test_a_norm_written_out_is_one_kernel():
    kernels = joined(trace_phase(on_meta(llama()), "prefill", tokens=5))
    norms = [kernel for kernel in kernels if kernel.kind == "norm"]
    assert len(norms) == 5
    assert all((norm.reads, norm.writes, norm.parameters) == (5 * 64, 5 * 64, 64) for norm in norms)


# --- bytes, bounds and times


@pytest.mark.parametrize(
    ("name", "weight", "activation"),
    [
        ("float32", 4, 4),
        ("bfloat16", 2, 2),
        ("int8", 1 + 2 / 128, 2),
        ("int4", 0.5 + 2 / 128, 2),
        ("w8a8", 1 + 2 / 128, 2),
    ],
)
def test_bytes_by_element_type(name, weight, activation):
    traced = trace(on_meta(Wrapped(nn.Linear(256, 512))), {"x": meta(8, 256)})
    (row,) = analyse(traced, SLOW, elements(name)).rows
    reads = 8 * 256 * (1 if name == "w8a8" else activation)
    assert row.weight_bytes == pytest.approx(256 * 512 * weight + 512 * activation)
    assert row.activation_bytes == pytest.approx(reads + 8 * 512 * activation)
    peak = {"float32": 1e9, "w8a8": 4e9}.get(name, 2e9)
    assert row.compute_seconds == pytest.approx(2 * 8 * 256 * 512 / peak)
    assert row.memory_seconds == pytest.approx(row.bytes / 1e9)
    assert row.seconds == row.ideal == max(row.compute_seconds, row.memory_seconds)
    assert row.bound == ("compute" if row.compute_seconds >= row.memory_seconds else "memory")


def test_bound_changes_at_the_balance():
    model = on_meta(Wrapped(nn.Linear(1024, 1024)))
    bounds = [analyse(trace(model, {"x": meta(n, 1024)}), find_device("a100"), FLOAT).rows[0] for n in (1, 4096)]
    assert [row.bound for row in bounds] == ["memory", "compute"]
    assert bounds[0].intensity == pytest.approx(0.5, rel=0.01)  # two operations for four bytes of weight


def test_totals_are_sums():
    found = analyse(trace_phase(on_meta(llama()), "decode", cache_tokens=20), SLOW, FLOAT)
    for rows in (found.by_kind(), found.by_layer()):
        assert sum(row.macs for row in rows) == found.total.macs
        assert sum(row.seconds for row in rows) == pytest.approx(found.total.seconds)
        assert sum(row.count for row in rows) == len(found.rows)
    assert sum(found.by_module().values()) == pytest.approx(found.total.seconds)
    assert layer_of("model.layers.11.mlp.up_proj") == "model.layers.11"
    assert layer_of("lm_head") == "lm_head"


def test_a_decoder_is_bound_by_memory_where_an_encoder_is_not():
    """AI and Memory Wall: generating tokens has far less intensity than an encoder pass of equal size and length."""
    from isthmus.flow.roofline import roofline

    model = llama(hidden_size=512, intermediate_size=2048, heads=8, max_position_embeddings=1024)
    encode, decode = (
        roofline(model, device="a100", dtype="bfloat16", **one)
        for one in (
            {"phase": "prefill", "tokens": 512},
            {"phase": "decode", "cache_tokens": 511},
        )
    )
    assert decode.total.intensity < encode.total.intensity / 50
    assert decode.total.intensity < 2
    assert all(row.bound == "memory" for row in decode.rows)


# --- the fit


def test_a_fit_finds_the_rates_it_was_made_from():
    rates = (3e-6, 1e-11, 4e-11, 0.0, 6e-11, 5e-11, 1e-11)
    works = [probe_work(probe, 4) for probe in PROBES if probe.kind == "linear"]
    true = Curve(rates, 0.0)
    fitted = fit(works, [true.seconds(work) for work in works])
    assert fitted.error < 1e-3
    unseen = [
        Work(2.0 * m * k * n, 4.0 * k * n, 4.0 * m * (k + n), Product(1, m, n, k))
        for m, k, n in ((7, 99, 333), (200, 450, 100))
    ]
    for work in unseen:
        assert fitted.seconds(work) == pytest.approx(true.seconds(work), rel=0.02)


def test_a_fit_bears_disturbed_times():
    works = [probe_work(probe, 4) for probe in PROBES if probe.kind == "linear"]
    true = Curve((3e-6, 1e-11, 4e-11, 0.0, 0.0, 5e-11, 0.0), 0.0)
    times = np.array([true.seconds(work) for work in works])
    times[::6] *= 4.0  # other work only ever makes it slower
    fitted = fit(works, times.tolist())
    errors = [abs(fitted.seconds(work) / true.seconds(work) - 1) for work in works]
    assert np.median(errors) < 0.05


def test_probes_count_as_traced_operators_do():
    model = nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False)
    probe = Probe("convolution", (2, 12, 24, 20, 3, 2))
    (kernel,) = trace(on_meta(Wrapped(model)), {"x": meta(2, 12, 20, 20)}).operators
    work = probe_work(probe, 4)
    assert macs(probe) == kernel.macs == work.product.macs
    assert work.product == kernel.product
    assert work.activation_bytes == 4 * (kernel.reads + kernel.writes)
    query = meta(2, 6, 5, 16)
    attention = Wrapped(lambda x: nn.functional.scaled_dot_product_attention(x, x, x))
    (kernel,) = trace(attention, {"x": query}).operators
    assert probe_work(Probe("attention", (2, 6, 6, 5, 5, 16)), 4).product == kernel.product


def measured(probes):
    return {
        probe: 1e-6 + probe_work(probe, 4).operations / 5e10 + probe_work(probe, 4).activation_bytes / 1e10
        for probe in probes
    }


def test_a_machine_is_measured_once_and_then_read(tmp_path):
    calls = []

    def measure(probes):
        calls.append(len(probes))
        return measured(probes)

    asked = {"engine": "openvino", "version": "1", "dtype": "float32", "threads": 1, "folder": tmp_path}
    first = measured_device(measure, **asked)
    assert measured_device(measure, **asked) == first
    assert len(calls) == 1
    assert 3e10 < first.peaks["float32"] < 5e10  # of an overhead and what it moves something is left
    assert first.bandwidth == pytest.approx(1e10, rel=1e-3)
    assert {"linear", "attention", "norm", "convolution"} <= set(first.curves)
    measured_device(measure, **{**asked, "threads": 2})
    assert len(calls) == 2  # other threads, another machine
    for file in tmp_path.iterdir():
        file.write_text(file.read_text()[:-20])
    assert measured_device(measure, **asked) == first
    assert len(calls) == 3


def test_this_machine_runs_every_probe():
    from isthmus.export.probing import time_probes

    kinds = {probe.kind: probe for probe in sorted(PROBES, key=macs, reverse=True)}  # the smallest of each kind
    for engine in ("openvino", "torch"):
        times = time_probes(list(kinds.values()), engine, rounds=2, threads=1)
        assert all(0 <= seconds < 1 for seconds in times.values())
        assert sum(times.values()) > 0
    device = device_from(measured([*PROBES, STREAM]), name="here", source="", dtype="float32")
    found = analyse(trace_phase(on_meta(llama()), "encode"), device, FLOAT)
    assert all(row.seconds > 0 for row in found.rows)


def test_a_profile_names_the_modules():
    from isthmus.export.profiling import Counted, summarise

    model, inputs = networks()["bert"]
    counted = Counted(model, inputs, threads=1)
    profile = summarise(counted.rounds(2))
    linear = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear -= {"pooler.dense"}  # what is not part of the first output does not run
    assert linear <= set(profile.modules)
    assert "encoder.layer.0.attention.self" in profile.modules
    assert profile.wall > 0


# --- the flow and the command


def write_config(folder, **sizes):
    from transformers import LlamaConfig

    folder.mkdir(exist_ok=True)
    LlamaConfig(**{**LLAMA, "architectures": ["LlamaForCausalLM"], **sizes}).save_pretrained(folder)
    return folder


def test_seventy_billion_parameters_without_their_memory(tmp_path):
    from isthmus.cost.measure import high_water
    from isthmus.flow.roofline import roofline

    shape = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    folder = write_config(
        tmp_path / "big", **shape, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192
    )
    roofline(write_config(tmp_path / "small"), device="h100")  # what is imported once is not counted
    before = high_water()
    found = roofline(folder, device="h100", phase="decode", cache_tokens=4096, dtype="bfloat16")
    assert high_water() - before < 1e9
    assert found.parameters == 70_553_706_496
    assert found.total.bound == "memory"
    weights = found.parameters - 128256 * 8192 + 8192  # of the table one row is read
    assert found.total.weight_bytes == pytest.approx(2 * weights, rel=1e-4)
    assert found.cache_bytes == 2 * 80 * 2 * 8 * 4097 * 128
    assert found.total.seconds == pytest.approx(found.total.bytes / 3.35e12, rel=1e-3)


def run(*arguments):
    from isthmus.cli.main import main

    return main(["roofline", *map(str, arguments)])


def test_the_command(tmp_path, capsys):
    folder = write_config(tmp_path / "llama")
    assert run(folder, "--device", "l4", "--phase", "decode", "--cache-tokens", "8", "--dtype", "int4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["phase"], found["dtype"], found["device"]["name"]) == ("decode", "int4", "l4")
    assert found["total"]["macs"] == sum(row["macs"] for row in found["operators"])
    assert found["total"]["bound"] == "memory"
    assert run(folder, "--device", "l4") == 0
    text = capsys.readouterr().out
    assert "prefill" in text
    assert "model.layers.1" in text
    assert "nothing was measured" in text


def test_a_plan_narrows_first(tmp_path, capsys):
    from isthmus.flow.roofline import roofline
    from isthmus.plan import Decision, Plan
    from isthmus.sites.discovery import discover
    from isthmus.sites.surgery import narrow_model
    from isthmus.storage.opening import open as open_network
    from small import write_network

    folder = write_network(tmp_path / "network")
    network = open_network(folder)
    sites = discover(network)
    halves = [site for site in sites if site.kind in ("heads", "neurons", "layers")]
    decisions = tuple(
        Decision(site=site.name, kind=site.kind, bottleneck="x", units=site.units, keep=tuple(range(site.units - 1)))
        for site in halves
    )
    plan = Plan(network="n", fingerprint="f", method="m", budget="params=90%", seed=0, decisions=decisions)
    file = tmp_path / "plan.json"
    plan.save(file)
    narrowed = narrow_model(network.model, sites, {one.site: one.keep for one in decisions})
    inputs = {"input_ids": torch.ones((1, 20), dtype=torch.long)}
    assert roofline(folder, device="a100", tokens=20, plan=plan).total.macs == macs_by_module(narrowed, inputs)[""]
    assert run(folder, "--device", "a100", "--tokens", 20, "--plan", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["macs"] == macs_by_module(narrowed, inputs)[""]
    narrowed_folder = tmp_path / "narrowed"
    from isthmus.storage.artifact import save_artifact

    save_artifact(network.with_model(narrowed), narrowed_folder, {"network": "n"})
    assert roofline(narrowed_folder, device="a100", tokens=20).total.macs == macs_by_module(narrowed, inputs)[""]
    with pytest.raises(BadInput, match="other weights"):
        roofline(network, device="a100", plan=plan)
    other = plan.model_copy(update={"decisions": (decisions[0].model_copy(update={"units": 999}),)})
    with pytest.raises(BadInput, match="999 units"):
        roofline(folder, device="a100", plan=other)
    unknown = plan.model_copy(update={"decisions": (decisions[0].model_copy(update={"site": "elsewhere"}),)})
    with pytest.raises(BadInput, match="unknown site"):
        roofline(folder, device="a100", plan=unknown)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--device", "a100"), "no config.json"),
        (("{folder}", "--device", "h10"), "did you mean h100"),
        (("{folder}", "--device", "a100", "--tokens", "3000"), "beyond the 2048 positions"),
        (("{folder}", "--device", "a100", "--phase", "decode", "--cache-tokens", "2048"), "beyond the 2048"),
        (("{folder}", "--device", "a100", "--phase", "dream"), "unknown phase"),
        (("{folder}", "--device", "a100", "--cache-tokens", "9"), "belongs to the phase decode"),
        (("{folder}", "--device", "a100", "--tokens", "0"), "at least 1"),
        (("{folder}", "--device", "a100", "--batch", "0"), "at least 1"),
        (("{folder}", "--device", "a100", "--dtype", "int3"), "unknown element type"),
        (("{folder}", "--device", "raspberry-pi-5", "--dtype", "bfloat16"), "no peak for bfloat16"),
        (("{folder}", "--dtype", "w8a8"), "not measured"),
        (("{folder}", "--engine", "torhc"), "did you mean torch"),
        (("{folder}", "--device", "a100", "--plan", "missing.json"), "missing.json"),
    ],
)
def test_bad_input(tmp_path, capsys, arguments, said):
    folder = write_config(tmp_path / "llama")
    assert run(*(part.format(folder=folder) for part in arguments)) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not JSON"), ("{}", "no model_type"), ('{"model_type": "x"}', "cannot build")]
)
def test_broken_configs(tmp_path, text, said):
    from isthmus.flow.roofline import roofline

    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        roofline(tmp_path, device="a100")


def test_networks_that_do_not_fit():
    model = on_meta(networks()["bert"][0])
    with pytest.raises(BadInput, match="keeps no cache"):
        trace_phase(model, "decode", cache_tokens=4)
    with pytest.raises(BadInput, match="size its config says"):
        trace_phase(on_meta(networks()["vit"][0]), "encode", tokens=4)

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedNetwork, match="cannot be traced"):
        trace(Branches(), {"x": meta(3)})


def test_positions_behind_the_padding_token():
    from transformers import RobertaConfig, RobertaModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    assert most_tokens(on_meta(RobertaModel(RobertaConfig(max_position_embeddings=40, vocab_size=30, **sizes)))) == 38


def test_devices_are_in_order():
    for device in DEVICES.values():
        assert device.peaks["float32"] <= device.peaks["int8"]
        assert device.bandwidth > 1e9
        assert device.source
