"""Every estimator against a computation of its own: by hand in numpy, by hooks of the test, by finite differences."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import networks
import pictured
import small
from isthmus import network as network_module
from isthmus.cost.predict import bytes_rate, kept_counts, parameter_rate
from isthmus.cost.rates import presence
from isthmus.network import Network, pool
from isthmus.relevance import bottleneck_gates as vib_gates
from isthmus.relevance.bottleneck_gates import GateState
from isthmus.relevance.calibrate import removal_order, spread, to_nats, vocabulary_relevance
from isthmus.relevance.estimator import Calibration
from isthmus.relevance.probe import Probe, gated_sites, make_probe, measure_closed, measure_network, measure_vocabulary
from isthmus.relevance.registry import ESTIMATORS, get
from isthmus.relevance.statistics import Statistics, collect, sampled_loss
from isthmus.relevance.vib import Schedule, VariationalBottleneck, pace
from isthmus.relevance.weights import unit_energy
from isthmus.sites import Site, closed_values, discover, gated, narrow_model
from isthmus.tasks.divergence import TEMPERATURE, divergence, logit_divergence, similarity_divergence

FEW = settings(max_examples=40, deadline=None)
TEXTS = small.sentences(60)


@cache
def probe_of(name: str, count: int = 12) -> tuple[Probe, tuple[Site, ...]]:
    network = networks.worded(name)
    return make_probe(network, TEXTS[:count]), discover(network)


def calibration(name: str, **changes: Any) -> Calibration:
    probe, sites = probe_of(name)
    return replace(Calibration(probe.network, sites, tuple(TEXTS[12:]), probe, vocabulary_of(name)), **changes)


@cache
def vocabulary_of(name: str) -> np.ndarray[Any, Any]:
    return vocabulary_relevance(*probe_of(name), TEXTS[12:])


def scores(method: str, name: str, statistics: Statistics | None = None) -> dict[str, np.ndarray[Any, Any]]:
    return dict(get(method).scores(calibration(name), statistics or Statistics()).nats)


@pytest.mark.parametrize("method", [name for name in ESTIMATORS if name != "vib"])
@pytest.mark.parametrize("name", ["mpnet", "electra-classifier"])
def test_a_score_for_every_unit(method: str, name: str) -> None:
    probe, sites = probe_of(name)
    found = scores(method, name, collect(probe, sites, get(method).needs, seed=0))
    for site in gated_sites(sites):
        assert found[site.name].shape == (site.units,)
        assert np.isfinite(found[site.name]).all()
        assert (found[site.name] >= 0).all()
    # A pooler that the output does not pass by has no gradient; everything else moves.
    assert all(found[site.name].any() for site in gated_sites(sites) if site.kind != "feature" or "class" in name)


def test_random_is_drawn_from_the_seed() -> None:
    first, second = (get("random").scores(calibration("bert", seed=seed), Statistics()).nats for seed in (0, 1))
    assert np.array_equal(first["width"], scores("random", "bert")["width"])
    assert not np.array_equal(first["width"], second["width"])


# Magnitude, by hand.


def test_magnitude_by_hand() -> None:
    weights = {name: tensor.numpy() for name, tensor in networks.worded("bert").model.state_dict().items()}
    found = scores("magnitude", "bert")
    layer = "encoder.layer.1."
    neuron, head, unit = 7, 2, 5
    wanted = (
        (weights[f"{layer}intermediate.dense.weight"][neuron] ** 2).sum()
        + weights[f"{layer}intermediate.dense.bias"][neuron] ** 2
        + (weights[f"{layer}output.dense.weight"][:, neuron] ** 2).sum()
    )
    assert found["layers.1.neurons"][neuron] == pytest.approx(np.sqrt(wanted), rel=1e-6)

    rows = slice(8 * head, 8 * head + 8)
    wanted = (weights[f"{layer}attention.output.dense.weight"][:, rows] ** 2).sum()
    for part in ("query", "key", "value"):
        wanted += (weights[f"{layer}attention.self.{part}.weight"][rows] ** 2).sum()
        wanted += (weights[f"{layer}attention.self.{part}.bias"][rows] ** 2).sum()
    assert found["layers.1.heads"][head] == pytest.approx(np.sqrt(wanted), rel=1e-6)

    wanted = sum((tensor**2).sum() for name, tensor in weights.items() if name.startswith(layer))
    assert found["layers"][1] == pytest.approx(np.sqrt(wanted), rel=1e-6)

    readers = [f"encoder.layer.{i}.attention.self.{part}" for i in range(3) for part in ("query", "key", "value")]
    readers += [f"encoder.layer.{i}.intermediate.dense" for i in range(3)] + ["pooler.dense"]
    writers = [f"encoder.layer.{i}.{part}" for i in range(3) for part in ("attention.output", "output")]
    wanted = sum((weights[f"{name}.weight"][:, unit] ** 2).sum() for name in readers)
    wanted += sum((weights[f"{name}.dense.weight"][unit] ** 2).sum() for name in writers)
    wanted += sum(weights[f"{name}.dense.bias"][unit] ** 2 for name in writers)
    for norm in ("embeddings", *writers):
        wanted += weights[f"{norm}.LayerNorm.weight"][unit] ** 2 + weights[f"{norm}.LayerNorm.bias"][unit] ** 2
    assert found["width"][unit] == pytest.approx(np.sqrt(wanted), rel=1e-6)


def test_magnitude_of_channels_leaves_running_statistics_out() -> None:
    """Padded shortcuts and batch norms: a unit's entries lie apart, and some of them are buffers."""
    network = pictured.resnet()
    weights = {name: tensor.detach().numpy() for name, tensor in network.model.named_parameters()}
    found = discover(network)
    for site in found:
        wanted = 0.0
        for part in site.slices:
            if part.parameter in weights:
                wanted += (np.take(weights[part.parameter], part.entries(site.units)[1], axis=part.dim) ** 2).sum()
        energy = unit_energy(dict(network.model.named_parameters()), site)
        assert energy[1] == pytest.approx(wanted, rel=1e-6)
    assert any(part.parameter.endswith("running_var") for site in found for part in site.slices)


def test_magnitude_of_a_fused_projection() -> None:
    """ModernBERT: query, key and value of a head lie far apart in one matrix, as do the two halves of a neuron."""
    weights = {name: tensor.numpy() for name, tensor in networks.worded("modernbert").model.state_dict().items()}
    found = scores("magnitude", "modernbert")
    head, neuron = 3, 11
    rows = np.concatenate([np.arange(8 * head, 8 * head + 8) + 32 * part for part in range(3)])
    wanted = (weights["layers.0.attn.Wqkv.weight"][rows] ** 2).sum()
    wanted += (weights["layers.0.attn.Wo.weight"][:, rows[:8]] ** 2).sum()
    assert found["layers.0.heads"][head] == pytest.approx(np.sqrt(wanted), rel=1e-6)
    wanted = (weights["layers.0.mlp.Wi.weight"][[neuron, neuron + 48]] ** 2).sum()
    wanted += (weights["layers.0.mlp.Wo.weight"][:, neuron] ** 2).sum()
    assert found["layers.0.neurons"][neuron] == pytest.approx(np.sqrt(wanted), rel=1e-6)


# Activations, by hooks of the test.


def seen(network: Network, probe: Probe, module: str, *, output: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Run the probe and return what enters (or leaves) a module, with the mask of each batch."""
    found: list[Tensor] = []
    target = network.model.get_submodule(module)
    if output:
        handle = target.register_forward_hook(lambda _, __, left: found.append(left.detach()))
    else:
        handle = target.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    with torch.no_grad():
        for x in probe.inputs:
            network.model(**x)
    handle.remove()
    return list(zip(found, (x["attention_mask"] for x in probe.inputs), strict=True))


def mean_square(pairs: list[tuple[Tensor, Tensor]]) -> np.ndarray[Any, Any]:
    """Mean square of every entry over the tokens that are not padding."""
    rows = torch.cat([values[mask.bool()] for values, mask in pairs]).double()
    return rows.square().mean(0).numpy()


def test_activations_by_hooks() -> None:
    probe, sites = probe_of("bert")
    network = probe.network
    statistics = collect(probe, sites, frozenset({"activations"}))
    weights = {name: tensor.double().numpy() for name, tensor in network.model.state_dict().items()}
    found = scores("activation", "bert", statistics)

    neurons = mean_square(seen(network, probe, "encoder.layer.2.output.dense"))
    np.testing.assert_allclose(statistics.activations["layers.2.neurons"], neurons, rtol=1e-9)
    energy = (weights["encoder.layer.2.output.dense.weight"] ** 2).sum(0)
    np.testing.assert_allclose(found["layers.2.neurons"], np.sqrt(neurons * energy), rtol=1e-6)

    heads = mean_square(seen(network, probe, "encoder.layer.0.attention.output.dense")).reshape(4, 8).sum(1)
    np.testing.assert_allclose(statistics.activations["layers.0.heads"], heads, rtol=1e-9)
    energy = (weights["encoder.layer.0.attention.output.dense.weight"] ** 2).reshape(32, 4, 8).sum((0, 2))
    np.testing.assert_allclose(found["layers.0.heads"], np.sqrt(heads * energy), rtol=1e-6)

    norms = ["embeddings.LayerNorm"]
    norms += [f"encoder.layer.{i}.{part}.LayerNorm" for i in range(3) for part in ("attention.output", "output")]
    width = sum(mean_square(seen(network, probe, norm, output=True)) for norm in norms)
    np.testing.assert_allclose(statistics.activations["width"], width, rtol=1e-9)

    entered = seen(network, probe, "encoder.layer.1.attention.self.query")
    left = seen(network, probe, "encoder.layer.1.output.LayerNorm", output=True)
    change = [(after - before, mask) for (before, mask), (after, _) in zip(entered, left, strict=True)]
    assert statistics.activations["layers"][1] == pytest.approx(mean_square(change).mean(), rel=1e-6)


def test_activations_leave_no_hook_even_after_a_failure() -> None:
    probe, sites = probe_of("bert")
    broken = replace(probe, inputs=({"input_ids": probe.inputs[0]["input_ids"] + 10_000},))
    with pytest.raises((IndexError, RuntimeError, KeyError)):
        collect(broken, sites, frozenset({"activations"}))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in probe.network.model.modules())


# Taylor and Fisher, by finite differences.


def log_likelihood(output: Tensor, pooling: str) -> Tensor:
    """Log probabilities, shape (texts, classes): of classes, or for an encoder of the other texts."""
    if pooling == "logits":
        return F.log_softmax(output, -1)
    unit = output / output.norm(dim=1, keepdim=True)
    rows = unit @ unit.T / TEMPERATURE
    return torch.stack([F.log_softmax(torch.cat([row[:i], row[i + 1 :]]), 0) for i, row in enumerate(rows)])


@pytest.mark.parametrize("name", ["distilbert", "modernbert-classifier"])
def test_gradients_by_finite_differences(name: str) -> None:
    """The labels are explicit here: drawn from the network's own outputs with the generator's seed."""
    probe, sites = probe_of(name)
    network = probe.network
    statistics = collect(probe, sites, frozenset({"gradients"}), seed=5)
    (x,) = probe.inputs
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        chances = log_likelihood(pool(network, network.model(**x), x["attention_mask"]), network.pooling).exp()
        labels = torch.multinomial(chances, 1, generator=generator)
        model = networks.worded(name).model.double()

        def loss(site: Site, unit: int, value: float) -> float:
            values = {site.name: torch.ones(site.units, dtype=torch.float64)}
            values[site.name][unit] = value
            with gated(model, [site], values):
                output = pool(network, model(**x), x["attention_mask"])
            return float(-log_likelihood(output, network.pooling).gather(1, labels).sum())

        # To one side only: the gate of a norm's weight is held below one.
        for site in gated_sites(sites):
            for unit in (0, site.units - 1):
                step = 1e-3
                values = [loss(site, unit, 1 - n * step) for n in range(3)]
                slope = (3 * values[0] - 4 * values[1] + values[2]) / (2 * step)
                texts = len(labels)
                limits = {"rel": 2e-3, "abs": 2e-4}
                assert statistics.gradients[site.name][unit] == pytest.approx(abs(slope) / texts, **limits), site.name
                assert statistics.squares[site.name][unit] == pytest.approx(slope**2 / texts, rel=5e-3, abs=1e-3)
        assert np.array_equal(scores("taylor", name, statistics)["width"], statistics.gradients["width"])
        assert np.array_equal(scores("fisher", name, statistics)["width"], 0.5 * statistics.squares["width"])


def test_gradients_add_up_over_parts() -> None:
    """Thirty texts pass in two parts; the texts of both count once each."""
    network = networks.worded("roberta-classifier")
    sites = discover(network)
    texts = TEXTS[:30]
    whole = make_probe(network, texts)
    found = collect(whole, sites, frozenset({"gradients"}), seed=1)
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(32)
    for start, stop in ((0, 16), (16, 30)):
        part = {name: tensor[start:stop] for name, tensor in whole.inputs[0].items()}
        values = {"width": torch.ones(32, requires_grad=True)}
        with gated(network.model, sites, values):
            logits = network.model(**part).logits
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), values["width"])
        total += gradient.square()
    np.testing.assert_allclose(found.squares["width"], total.numpy() / 30, rtol=1e-4, atol=1e-7)
    assert all(parameter.requires_grad for parameter in network.model.parameters())


def test_fisher_is_the_curvature_of_the_divergence() -> None:
    """Averaged over drawn labels, half the square of the gradient is what closing a gate a little really costs."""
    network = networks.worded("bert-classifier")
    sites = discover(network)
    probe = make_probe(network, TEXTS[:16])
    site = next(site for site in sites if site.name == "layers.1.heads")
    seeds = 150
    drawn = [collect(probe, [site], frozenset({"gradients"}), seed=seed).squares[site.name] for seed in range(seeds)]
    estimate = 0.5 * np.mean(drawn, axis=0)
    step = 0.05
    for unit in range(site.units):
        value = torch.ones(site.units)
        value[unit] = 1 - step
        lower = measure_closed(probe, [site], {site.name: value})
        value[unit] = 1 + step
        curvature = (lower + measure_closed(probe, [site], {site.name: value})) / 2 / step**2
        assert estimate[unit] == pytest.approx(curvature, rel=0.5)


@pytest.mark.parametrize("pooling", ["logits", "mean"])
def test_drawn_labels_follow_the_outputs(pooling: str) -> None:
    output = torch.tensor([[2.0, 0.1, -1.0], [0.2, 0.9, 0.3], [-0.4, 0.1, 0.2], [0.5, -0.5, 0.1]])
    wanted = log_likelihood(output, pooling)
    generator = torch.Generator().manual_seed(0)
    mean = np.mean([float(sampled_loss(output, pooling, generator)) for _ in range(2000)])
    # The expectation of a drawn label's loss is the entropy of the distribution that it is drawn from.
    assert mean == pytest.approx(float(-(wanted.exp() * wanted).sum()), rel=0.05, abs=0.05)


# Divergence.


@FEW
@given(st.integers(2, 7), st.integers(2, 9), st.integers(1, 9), st.integers(0, 9))
def test_divergence_is_that_of_scipy(texts: int, width: int, narrower: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(texts, width, generator=generator), torch.randn(texts, width, generator=generator)
    p, q = (scipy.special.softmax(logits.double().numpy(), axis=1) for logits in (second, first))
    wanted = scipy.special.rel_entr(p, q).sum(1).mean()
    assert float(logit_divergence(first, second)) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert float(divergence(first, second, "logits")) == float(logit_divergence(first, second))

    student = torch.randn(texts, narrower, generator=generator)
    p, q = (log_likelihood(vectors.double(), "mean").exp().numpy() for vectors in (first, student))
    wanted = scipy.special.rel_entr(p, q).sum(1).mean()
    assert float(similarity_divergence(student, first)) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert float(divergence(first * 3, first, "mean")) == pytest.approx(0, abs=1e-5)


# Calibration.


SCORES = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=2, max_size=30)


@FEW
@given(SCORES, st.data())
def test_spread_keeps_the_order(values: list[float], data: st.DataObject) -> None:
    """Whatever was measured: finite, not negative, in the order of the scores; what may not go is beyond price."""
    units = len(values)
    raw = np.array(values)
    fixed = sorted(data.draw(st.sets(st.integers(0, units - 1), max_size=units - 1)))
    free = units - len(fixed)
    closed = sorted(data.draw(st.sets(st.integers(1, free), max_size=5)))
    measured = data.draw(st.lists(st.floats(0, 50), min_size=len(closed), max_size=len(closed)))
    nats = spread(raw, closed, measured, fixed)
    order = removal_order(raw, fixed)
    assert sorted([*order.tolist(), *fixed]) == list(range(units))
    assert np.isposinf(nats[fixed]).all()
    assert np.isfinite(nats[order]).all()
    assert (nats[order] >= 0).all()
    assert (np.diff(raw[order]) >= 0).all()
    assert (np.diff(nats[order]) >= -1e-9 * (1 + nats[order].max())).all()
    if closed:  # whatever the curve, all that was closed together costs what was measured
        assert nats[order[: closed[-1]]].sum() == pytest.approx(max(measured), rel=1e-6, abs=1e-9)


@FEW
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.lists(st.floats(0.01, 3), min_size=5, max_size=5))
def test_spread_gives_back_what_was_measured(sizes: list[int], slopes: list[float]) -> None:
    """Convex measurements, units of a step alike: the sums over removed units are the measured nats, step by step."""
    rising = np.sort(slopes)[: len(sizes)]
    raw = np.repeat(np.arange(len(sizes), dtype=float) + 1, sizes)
    closed = np.cumsum(sizes)
    measured = np.cumsum(rising * sizes)
    nats = spread(raw, closed.tolist(), measured.tolist())
    found = np.cumsum(nats[removal_order(raw)])[closed - 1]
    np.testing.assert_allclose(found, measured, rtol=1e-6)


def test_units_of_a_step_share_in_proportion_to_their_scores() -> None:
    nats = spread(np.array([3.0, 1.0, 30.0, 10.0]), [2, 4], [0.4, 40.4])
    np.testing.assert_allclose(nats, [0.3, 0.1, 30, 10], rtol=1e-6)


def test_removal_order() -> None:
    order = removal_order(np.array([1.0, 0.0, 1.0, 0.0, 2.0]), fixed=[4])
    assert order.tolist() == [3, 1, 2, 0], "least relevant first, and of equals the later one"


def test_nats_are_what_closing_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the units that go are measured divergences, and a layer costs what passing it by costs."""
    monkeypatch.setattr(network_module, "has_bfloat16", lambda: False)  # or they are estimates of those
    probe, sites = probe_of("distilbert")
    chosen = tuple(site for site in sites if site.name in ("layers", "layers.1.neurons"))
    raw = {"layers": np.ones(3), "layers.1.neurons": np.ones(48)}
    nats = to_nats(probe, chosen, raw)
    layers, neurons = (next(site for site in chosen if site.name == name) for name in raw)
    for index in range(3):
        kept = [unit for unit in range(3) if unit != index]
        removed = measure_network(
            probe, probe.network.with_model(narrow_model(probe.network.model, sites, {"layers": kept}))
        )
        assert nats["layers"][index] == pytest.approx(removed, rel=1e-3, abs=1e-5)
        assert measure_closed(probe, [layers], closed_values([layers], {"layers": kept})) == pytest.approx(
            removed, abs=1e-4
        )
    # Alike scores: the later units go first. All but the one that must stay:
    value = torch.zeros(48)
    value[0] = 1
    most = measure_closed(probe, [neurons], {"layers.1.neurons": value})
    assert nats["layers.1.neurons"][1:].sum() == pytest.approx(most, rel=1e-5)
    assert (np.diff(nats["layers.1.neurons"]) <= 1e-12).all()


def test_closing_nothing_costs_nothing() -> None:
    probe, sites = probe_of("bert")
    values = {site.name: torch.ones(site.units) for site in gated_sites(sites)}
    assert measure_closed(probe, sites, values) == pytest.approx(0, abs=1e-5)
    assert measure_network(probe, probe.network) == pytest.approx(0, abs=1e-6)
    vocabulary = next(site for site in sites if site.kind == "vocabulary")
    assert measure_vocabulary(probe, range(vocabulary.units)) == pytest.approx(0, abs=1e-6)


def test_vocabulary_relevance() -> None:
    probe, sites = probe_of("bert")
    site = next(site for site in sites if site.kind == "vocabulary")
    nats = vocabulary_relevance(probe, sites, TEXTS)
    assert nats.shape == (site.units,)
    assert np.flatnonzero(np.isinf(nats)).tolist() == list(site.fixed)
    counts = np.zeros(site.units)
    for text in TEXTS:
        for token in probe.network.tokenizer(text, add_special_tokens=False)["input_ids"]:
            counts[token] += 1
    assert (np.diff(nats[removal_order(counts, site.fixed)]) >= -1e-9).all(), "rarer tokens go first"
    assert len(vocabulary_relevance(probe, sites[1:], TEXTS)) == 0


# The variational bottleneck: its formulas.


def gates_of(mean: Tensor, log_variance: Tensor, name: str = "a") -> GateState:
    return GateState({name: mean}, {name: log_variance}, {name: torch.ones_like(mean)})


@FEW
@given(st.floats(0.05, 3), st.floats(-6, 3))
def test_information_is_the_divergence_from_the_best_prior(mean: float, log_variance: float) -> None:
    """KL of N(mu, s^2) from N(0, v), least at v = mu^2 + s^2, where it is 1/2 log(1 + mu^2/s^2)."""
    found = float(vib_gates.information(gates_of(torch.tensor([mean]), torch.tensor([log_variance])), "a"))
    variance = np.exp(log_variance)
    posterior = Normal(torch.tensor(mean), torch.tensor(np.sqrt(variance)))
    prior = Normal(torch.tensor(0.0), torch.tensor(np.sqrt(mean**2 + variance)))
    assert found == pytest.approx(float(kl_divergence(posterior, prior)), rel=1e-4, abs=1e-6)

    def from_prior(log_v: float) -> float:
        scale = torch.tensor(np.exp(0.5 * log_v), dtype=torch.float64)
        wide = Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(np.sqrt(variance), dtype=torch.float64))
        return float(kl_divergence(wide, Normal(torch.zeros((), dtype=torch.float64), scale)))

    best = scipy.optimize.minimize_scalar(from_prior, bounds=(-12, 8), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(best.fun, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 0.1), (0.5, 0.5), (-0.8, 1.5)])
def test_information_by_integration(mean: float, deviation: float) -> None:
    spread_ = np.sqrt(mean**2 + deviation**2)

    def integrand(z: float) -> float:
        density = scipy.stats.norm.pdf(z, mean, deviation)
        return float(density * (scipy.stats.norm.logpdf(z, mean, deviation) - scipy.stats.norm.logpdf(z, 0, spread_)))

    wanted, _ = scipy.integrate.quad(integrand, mean - 12 * deviation, mean + 12 * deviation, limit=200)
    gates = gates_of(torch.tensor([mean]), torch.tensor([2 * np.log(deviation)], dtype=torch.float32))
    assert float(vib_gates.information(gates, "a")) == pytest.approx(wanted, rel=1e-4)


def test_a_half_open_gate_carries_half_the_logarithm_of_two() -> None:
    gates = gates_of(torch.tensor([0.7]), torch.tensor([0.7]).square().log())
    assert float(vib_gates.openness(gates, "a")) == pytest.approx(0.5, abs=1e-4)
    assert float(vib_gates.information(gates, "a")) == pytest.approx(0.5 * np.log(2), rel=1e-4)


def test_samples_have_the_mean_and_variance_of_the_gate() -> None:
    gates = gates_of(torch.tensor([1.0, 0.3, 2.0]), torch.tensor([-2.0, 0.5, 0.0]))
    gates.open["a"][2] = 0
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([vib_gates.sample(gates, generator)["a"] for _ in range(20_000)])
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, 0.3, 0.0]), rtol=0.05, atol=0.02)
    torch.testing.assert_close(drawn.var(0), torch.tensor([-2.0, 0.5, -torch.inf]).exp(), rtol=0.05, atol=1e-6)
    assert float(vib_gates.information(gates, "a")[2]) == 0
    assert float(vib_gates.openness(gates, "a")[2]) == 0


def small_state(seed: int = 0) -> tuple[GateState, tuple[Site, ...]]:
    sites = gated_sites(discover(networks.tiny("bert")))
    gates = vib_gates.new_gates(sites, {})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in sites:
            gates.mean[site.name] = gates.mean[site.name].double()
            noise = torch.randn(site.units, generator=generator, dtype=torch.float64)
            gates.log_variance[site.name] = noise.requires_grad_(True)
    for site in sites:
        gates.mean[site.name].requires_grad_(True)
        gates.open[site.name] = gates.open[site.name].double()
    return gates, sites


def test_new_gates_are_open() -> None:
    gates, sites = vib_gates.new_gates(small_state()[1], {}), small_state()[1]
    counts = vib_gates.expected_counts(gates, sites, None)
    for name, count in kept_counts(sites).items():
        assert float(counts[name]) == pytest.approx(count, rel=0.02)


@pytest.mark.parametrize("pressure", [1.0, 0.3])
def test_expected_counts_by_finite_differences(pressure: float) -> None:
    """The rate of the expected counts is differentiable by every gate; pressures scale gradients alone."""
    gates, sites = small_state()
    rate = parameter_rate(networks.tiny("bert").model, sites)

    def cost(with_pressure: float) -> Tensor:
        pressures = {"layers": with_pressure, "width": with_pressure / 2 if with_pressure < 1 else 1.0}
        return rate(vib_gates.expected_counts(gates, sites, None, pressures))

    assert float(cost(pressure)) == float(cost(1.0))
    for name, scale in (
        ("width", pressure / 2 if pressure < 1 else 1.0),
        ("layers.1.heads", 1.0),
        ("layers.2.neurons", 1.0),
        ("layers", pressure),
    ):
        for leaves in (gates.mean, gates.log_variance):
            (gradient,) = torch.autograd.grad(cost(pressure), leaves[name])
            with torch.no_grad():
                step, sides = 1e-5, []
                for sign in (1, -1):
                    leaves[name][1] += sign * step
                    sides.append(float(cost(1.0)))
                    leaves[name][1] -= sign * step
            wanted = scale * (sides[0] - sides[1]) / (2 * step)
            assert float(gradient[1]) == pytest.approx(wanted, rel=1e-4), name


def test_gates_begin_with_the_noise_that_is_least_dear() -> None:
    """The start is the minimum of F sigma^2 / 2 + b information(sigma), found here by search; its spread is bounded."""
    sites = [Site("a", "neurons", 4)]
    fisher = np.array([1.0, 2.0, 0.5, 1.0])
    gates = vib_gates.new_gates(sites, {"a": fisher})
    found = gates.log_variance["a"].detach().double().exp().numpy()
    price = float((found * fisher).mean())
    grid = np.exp(np.linspace(-9, 0, 20001))
    for unit, value in enumerate(fisher):
        cost = value * grid / 2 + price * 0.5 * np.log(1 + 1 / grid)
        # Information is 1/2 log(1 + 1/sigma^2), whose slope is that of -1/2 log sigma^2 for small noise.
        assert found[unit] == pytest.approx(grid[cost.argmin()], rel=0.05)
    assert np.log(found).mean() == pytest.approx(vib_gates.START_LOG_VARIANCE)
    far = vib_gates.new_gates(sites, {"a": np.array([1e-9, 1.0, 1.0, 1e9])}).log_variance["a"].detach()
    assert float((far - vib_gates.START_LOG_VARIANCE).abs().max()) == pytest.approx(vib_gates.START_SPREAD)


def test_gates_move_less_where_less_is_to_go() -> None:
    original = {"params": 200.0, "macs": 10.0}
    paces = [pace({"params": share * 200.0}, original) for share in (1.0, 0.9, 0.75, 0.5, 0.1)]
    assert paces == pytest.approx([0.0, 0.2**1.5, 0.5**1.5, 1.0, 1.0])
    assert pace({"params": 190.0, "macs": 5.0}, original) == 1.0, "the tightest limit counts"


def test_expected_counts_never_fall_below_what_must_stay() -> None:
    gates, sites = small_state()
    for site in sites:
        gates.open[site.name].zero_()
    counts = vib_gates.expected_counts(gates, sites, torch.tensor(7.0))
    assert all(float(counts[site.name]) == site.minimum for site in sites)
    assert float(counts["vocabulary"]) == 7
    assert [float(counts[presence(index)]) for index in range(3)] == [0, 0, 0]


@FEW
@given(st.integers(0, 1000), st.integers(1, 4), st.floats(-4, 4))
def test_closing_keeps_what_must_stay(seed: int, minimum: int, below: float) -> None:
    """However the gates drift: as many as must stay are open, and what was closed stays closed."""
    generator = torch.Generator().manual_seed(seed)
    site = Site("a", "neurons", 5, minimum=minimum)
    gates = gates_of(torch.ones(5), torch.zeros(5))
    for _ in range(4):
        before = gates.open["a"].clone()
        gates.log_variance["a"] = 3 * torch.randn(5, generator=generator)
        closed = vib_gates.close_lost(gates, [site], below)
        assert closed == int((gates.open["a"] == 0).sum())
        assert float(gates.open["a"].sum()) >= minimum
        assert (gates.open["a"] <= before).all()
        ratio = -gates.log_variance["a"]
        kept = (gates.open["a"] == 1) & (ratio < below)
        assert int(kept.sum()) == 0 or float(gates.open["a"].sum()) == minimum


# The variational bottleneck: its training.


def trained(name: str, share: float, schedule: Schedule, **changes: Any) -> Any:
    given_ = calibration(name)
    rate = {"params": parameter_rate(given_.network.model, given_.sites)}
    whole = {"params": float(rate["params"](kept_counts(given_.sites)))}
    limits = {"params": share * whole["params"]}
    return VariationalBottleneck(schedule=schedule).scores(
        replace(given_, rates=rate, limits=limits, original=whole, **changes), Statistics()
    )


@pytest.mark.parametrize("weight_rate", [0.0, 1e-4])
def test_gates_are_trained_to_the_budget(weight_rate: float) -> None:
    """The expected rate comes down to the budget; relevance is whole, and the original is as it was."""
    network = probe_of("bert")[0].network
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    schedule = Schedule(steps=60, weight_rate=weight_rate, gate_rate=0.15, layer_rate=0.05, batch=16, close_every=5)
    found = trained("bert", 0.5, schedule)
    for site in gated_sites(probe_of("bert")[1]):
        assert found.nats[site.name].shape == (site.units,)
        assert np.isfinite(found.nats[site.name]).all()
        assert (found.nats[site.name] > 0).all()
    curves = {curve.name: [value for _, value in curve.points] for curve in found.curves}
    assert curves["gates: expected rate"][0] > 0.9
    assert curves["gates: expected rate"][-1] < 0.6
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.model.modules())


def test_gates_of_the_same_seed_are_the_same() -> None:
    schedule = Schedule(steps=6, batch=16, close_every=2)
    first, again = (trained("mpnet-classifier", 0.7, schedule, seed=4) for _ in range(2))
    other = trained("mpnet-classifier", 0.7, schedule, seed=5)
    assert all(np.array_equal(first.nats[name], again.nats[name]) for name in first.nats)
    assert any(not np.array_equal(first.nats[name], other.nats[name]) for name in first.nats)


def test_gates_that_matter_stay_open() -> None:
    """Neurons that nothing reads are found: their gates carry less than those of neurons that are read."""
    network = networks.worded("bert")
    sites = discover(network)
    with torch.no_grad():
        network.model.get_parameter("encoder.layer.1.output.dense.weight")[:, 24:] = 0
    probe = make_probe(network, TEXTS[:12])
    rate = {"params": parameter_rate(network.model, sites), "bytes": bytes_rate(network.model, sites)}
    whole = {currency: float(each(kept_counts(sites))) for currency, each in rate.items()}
    limits = {currency: 0.6 * value for currency, value in whole.items()}
    given_ = Calibration(network, sites, tuple(TEXTS[12:]), probe, vocabulary_of("bert"), rate, limits, whole)
    schedule = Schedule(steps=60, gate_rate=0.1, batch=16)
    nats = VariationalBottleneck(schedule=schedule).scores(given_, Statistics()).nats["layers.1.neurons"]
    assert np.median(nats[:24]) > 1.2 * np.median(nats[24:])
