"""Claims about where information is: their rules on made-up results, their helpers by hand, tiny runs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from claims import (
    cramming_1568,
    crate,
    cvib,
    dnn_server_overheads,
    ib_lossy_compression,
    layer_by_layer,
    llm_viewer,
    mec_b,
    normgrad,
    posterior_collapse,
    shape_of_learning,
    small_lm,
    ssl_transfer,
)
from claims.__main__ import TRIALS
from claims.coding import Point
from claims.trials import Trials
from claims.vtrans import FAILS, HOLDS, MIXED
from scipy.stats import spearmanr

from isthmus.errors import BadInput
from isthmus.information.coupling import entropy
from isthmus.tasks.data import data_folder

needs_data = pytest.mark.skipif(data_folder() is None, reason="no folder of data")


def of(slug: str) -> Trials:
    found: Trials = import_module(f"claims.{TRIALS[slug]}").TRIALS
    return found


def verdicts(slug: str, figures: Any) -> list[str]:
    claim = of(slug)
    outcomes = [vars(point) | figures(point) for point in claim.points(claim.seeds)]
    return [part["verdict"] for part in claim.parts(outcomes)]


def noise(point: Point) -> float:
    return 0.001 * float(np.random.default_rng([point.seed, len(point.arm), int(point.level)]).uniform())


# NormGrad.


@pytest.mark.parametrize(("ahead", "expected"), [(0.3, [HOLDS, HOLDS]), (-0.1, [FAILS, FAILS])])
def test_maps_that_point(ahead: float, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        early = ahead if point.arm == normgrad.NORMGRAD else 0.0
        hits = 0.9 - (0.4 - early) * (point.level == 0) if point.arm != normgrad.COMBINED else 0.95
        trained = 0.5 if point.arm == normgrad.TRAINED and point.level < 3 else 0.2
        return {"hits": hits + noise(point), "mass": 0.3, "sensitivity": trained + noise(point), "off": 1e-7}

    found = verdicts("normgrad", figures)
    assert found[:2] == expected
    assert found[2] == MIXED
    assert found[4] == HOLDS


def test_where_a_map_points() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 3], maps[0, 3, 3] = 3.0, 1.0
    maps[1, 1, 1], maps[1, 0, 2] = 2.0, 2.0
    hit, share = normgrad.pointing(maps, 1)
    assert hit.tolist() == [1.0, 1.0, 0.25]
    assert share.tolist() == [0.75, 0.5, 0.25]
    assert normgrad.pointing(maps, 3)[0].tolist() == [0.0, 0.0, 0.25]


def test_mosaics_are_of_four_classes() -> None:
    labels = torch.arange(12) % 6
    pixels = labels[:, None, None, None].float().expand(12, 3, 4, 4)
    found = normgrad.mosaics(pixels, labels, 5, 0)
    assert found.pixels.shape == (5, 3, 8, 8)
    quarters = torch.stack([found.pixels[:, 0, row, column] for row in (0, 7) for column in (0, 7)], 1)
    assert torch.equal(quarters, found.classes.float())
    assert all(len(row.unique()) == 4 for row in found.classes)
    with pytest.raises(BadInput, match="3 classes"):
        normgrad.mosaics(pixels, labels % 3, 5, 0)


def test_the_gradient_of_an_identity_that_is_there() -> None:
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.conv(pixel_values).mean((2, 3)))

    model, inputs, classes = Model(), torch.randn(2, 3, 5, 5), torch.tensor([1, 3])
    found = normgrad.identity_gradient(model, "conv", {"pixel_values": inputs}, classes)
    means = model.conv(inputs).mean((2, 3))
    expected = torch.zeros(4, 4)
    for sample, label in enumerate(classes):
        expected[label] += means[sample]
    torch.testing.assert_close(found, expected)


# Minimum entropy coupling with a bottleneck.


def test_plain_compression_keeps_the_rate() -> None:
    given = np.array([0.1, 0.4, 0.2, 0.3])
    full = mec_b.likeliest_apart(given, 9.0)
    assert entropy(full.sum(0)) == pytest.approx(entropy(given))
    found = mec_b.likeliest_apart(given, 0.7)
    np.testing.assert_allclose(sorted(found.sum(0)), [0.4, 0.6])
    halves = mec_b.equal_bins(given, 0.7)
    np.testing.assert_allclose(halves.sum(0), [0.5, 0.5])
    assert mec_b.equal_bins(given, 0.1).shape == (4, 1)
    assert len(list(mec_b.partitions(4))) == 15  # Bell's number


def test_a_game_is_worth_what_its_policy_is() -> None:
    game = mec_b.grid()
    np.testing.assert_allclose(game.policy.sum(2), 1)
    rng = np.random.default_rng(0)
    encoder = mec_b.bounded_encoder(np.full(4, 0.25), 2.0)
    played = [mec_b.play(game, encoder, rng) for _ in range(150)]
    rewards = np.array([reward for _, _, reward in played])
    assert abs(rewards.mean() - game.value) < 4 * rewards.std() / np.sqrt(len(rewards))
    assert np.mean([believed.argmax() == message for message, believed, _ in played]) > 0.7


@pytest.mark.parametrize(("gap", "expected"), [(0.2, HOLDS), (-0.2, FAILS)])
def test_messages_that_arrive(gap: float, expected: str) -> None:
    def figures(point: Point) -> dict[str, Any]:
        value = 0.5 + noise(point) + gap * (point.arm == mec_b.OURS)
        return {
            "accuracy": value, "nats": value, "reward": mec_b.grid().value, "reward error": 0.01, "missed": 0.0,
            "over": -0.1, "beyond": 0.1 if gap < 0 else -0.1, "marginal": 0.0,
        }  # fmt: skip

    assert verdicts("mec-b", figures) == [expected, expected, expected, HOLDS, expected]


# Posterior collapse.


def test_pairs_that_are_ordered_alike() -> None:
    assert posterior_collapse.concordance([1, 2, 3], [0, 0, 5]) == 1
    assert posterior_collapse.concordance([1, 2, 3], [5, 2, 3]) == pytest.approx(1 / 3)
    assert np.isnan(posterior_collapse.concordance([1, 1], [0, 4]))


@pytest.mark.parametrize("arm", [posterior_collapse.CONDITIONAL[2], posterior_collapse.CONDITIONAL[3]])
def test_latents_of_a_heavy_divergence_die(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior_collapse, "STEPS", 60)
    monkeypatch.setattr(posterior_collapse, "LATENTS", 2)
    found = posterior_collapse.measure(Point(arm, 24.0, 0))
    assert found["predicted"] == 0
    if arm.startswith(posterior_collapse.LINEAR):
        assert found["measured"] == 0


@pytest.mark.parametrize(("right", "expected"), [(1, [HOLDS, HOLDS, HOLDS, HOLDS]), (0, [FAILS, FAILS, FAILS, FAILS])])
def test_counts_of_latents(right: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior_collapse, "predicted", lambda *_: (4, 4))

    def figures(point: Point) -> dict[str, Any]:
        told = 8 - int(3 * np.log2(point.level + 1)) // 2
        learnt = -3 if point.arm.endswith(posterior_collapse.LEARNT) else 0
        linear = point.arm.startswith(posterior_collapse.LINEAR)
        measured = told + (0 if right else 1) if linear else (told + learnt if right else -told)
        return {"predicted": told, "measured": measured}

    found = verdicts("posterior-collapse-cvae-hvae", figures)
    assert found[:3] == expected[:3]
    assert found[3] == (HOLDS if right else FAILS)


# Layers.


@pytest.fixture
def tiny_lm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> small_lm.Recipe:
    """A decoder of two layers that is trained for three steps on made-up text."""
    lines = [f"the {a} {b} is not a {c}" for a in "abcdef" for b in "ghijk" for c in "lmnop"]
    monkeypatch.setattr(small_lm, "_lines", lambda: lines)
    monkeypatch.setattr(small_lm, "KEPT", tmp_path)
    small_lm.text.cache_clear()
    yield small_lm.Recipe(vocabulary=300, width=24, layers=2, heads=2, steps=3, length=8, batch=4, kept=(0, 3))
    small_lm.text.cache_clear()


def test_a_small_language_model_is_trained_once(tiny_lm: small_lm.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small_lm.trained(0, recipe=tiny_lm)
    monkeypatch.setattr(small_lm, "train", lambda *_: pytest.fail("trained again"))
    again = small_lm.trained(0, recipe=tiny_lm)
    start = small_lm.trained(0, 0, recipe=tiny_lm)
    one, two, zero = (model.transformer.h[0].mlp.c_fc.weight for model in (first, again, start))
    assert torch.equal(one, two)
    assert not torch.equal(one, zero)
    with pytest.raises(BadInput, match="step 2 is not kept"):
        small_lm.trained(0, 2, recipe=tiny_lm)


def test_places_of_a_decoder(tiny_lm: small_lm.Recipe) -> None:
    network = small_lm.encoder(0, recipe=tiny_lm)
    texts = ["the a g is not a l", "the b", *[f"the c {word}" for word in "ghijk" * 8]]
    found = layer_by_layer.states(network, texts)
    assert [one.shape for one in found] == [(42, 24)] * 3
    alone = layer_by_layer.states(network, [texts[0]] * 32)
    np.testing.assert_allclose(found[2][0], alone[2][0], atol=1e-5)
    tokens = shape_of_learning.token_states(network, texts)
    assert len(tokens) == 3
    ids = network.tokenizer(texts)["input_ids"]
    assert len(tokens[0]) == sum(map(len, ids))


@pytest.mark.parametrize(("peak", "expected"), [(3, HOLDS), (6, FAILS)])
def test_middle_layers_that_are_ahead(peak: int, expected: str) -> None:
    def figures(point: Point) -> dict[str, Any]:
        best = 6 if point.arm == layer_by_layer.TUNED else peak
        worth = 0.8 - 0.05 * abs(point.level - best)
        keys = [f"{task}{suffix}" for task in layer_by_layer.TASKS for suffix in ("", ", chosen by", ", tested")]
        told = {name: sign * worth for name, sign in layer_by_layer.TOLD.items()}
        return {**{key: worth + noise(point) for key in keys}, **told}

    found = verdicts("layer-by-layer", figures)
    assert found == [expected, HOLDS, HOLDS]


def test_tasks_are_scored_on_halves() -> None:
    rng = np.random.default_rng(0)
    count = layer_by_layer.TRAINED + 40
    labels = rng.integers(0, 2, count)
    scores = rng.uniform(size=10)
    angle = np.arccos(scores)
    left = np.tile([1.0, 0.0, 0.0], (10, 1))
    right = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    rows = np.stack([0 * labels, 0 * labels, labels], 1) + 0.01 * rng.normal(size=(count, 3))
    words = tuple("x" for _ in range(count))
    own = layer_by_layer.Texts(("x",) * 10, ("x",) * 10, scores, {"sentiment": (words, labels)}, ())
    found = layer_by_layer.scored(np.concatenate([left, right, rows]), own)
    assert found == {"similarity": (pytest.approx(1), pytest.approx(1)), "sentiment": (1.0, 1.0)}


@pytest.mark.parametrize(("bell", "expected"), [(True, [HOLDS] * 4), (False, [FAILS, FAILS, MIXED, FAILS])])
def test_shapes(bell: bool, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        if point.arm == shape_of_learning.TRAINING:
            rising = {0: 5, 20: 7, 50: 9, 100: 12, 200: 10, 400: 8, 600: 7 if bell else 14}
            return {"dimension": rising[int(point.level)] + noise(point), "anisotropy": 0.1}
        if point.arm == shape_of_learning.MANIFOLD:
            return {"dimension": point.level, "off": 0.02 if bell else -0.3}
        deep = 0.5 - 0.1 * abs(point.level - 3) if bell else 0.1 * point.level
        flat = 0.2 + 0.01 * point.level if bell else 0.3 * point.level
        value = deep if point.arm == shape_of_learning.DECODER else flat
        return {"anisotropy": value + noise(point), "dimension": 8.0}

    assert verdicts("shape-of-learning", figures) == expected


def test_manifolds_have_their_dimension() -> None:
    found = shape_of_learning.measure(Point(shape_of_learning.MANIFOLD, 2.0, 0))
    assert found["off"] == pytest.approx(0, abs=0.15)


# White-box transformers.


@pytest.mark.parametrize(("gap", "expected"), [(-0.01, HOLDS), (-0.1, FAILS)])
def test_white_boxes_beside_others(gap: float, expected: str) -> None:
    def figures(point: Point) -> dict[str, Any]:
        accuracy = 0.85 + noise(point) + (gap if point.arm == crate.OURS else 0)
        fall = 5.0 if gap > -0.05 else -5.0
        rates = {"before": 60.0 + noise(point), "after": 60 - fall - point.level, "sparsity": 0.1 * point.level}
        return {"accuracy": accuracy, "parameters": 1000, **({} if point.arm == crate.PLAIN else rates)}

    assert verdicts("crate", figures) == [expected, expected, HOLDS]


@needs_data
def test_white_boxes_are_trained_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRAINED", 300), ("HELD", 60), ("MEASURED", 4), ("EPOCHS", 1)):
        monkeypatch.setattr(crate, name, value)
    for cached in (crate.data, crate._trained):
        cached.cache_clear()
    try:
        ours, plain = (crate.measure(Point(arm, 1.0, 0)) for arm in (crate.OURS, crate.PLAIN))
        assert ours["parameters"] < plain["parameters"]
        assert {"before", "after", "sparsity"} <= set(ours)
    finally:
        for cached in (crate.data, crate._trained):
            cached.cache_clear()


# Information by lossy compression.


def test_images_of_known_information() -> None:
    first, second = ib_lossy_compression.latents(3.0, 0)
    rho = spearmanr(first[:, 0], second[:, 0]).statistic
    assert -np.log(1 - (2 * np.sin(np.pi * rho / 6)) ** 2) == pytest.approx(3.0, abs=0.2)
    for kind in (ib_lossy_compression.BLOBS, ib_lossy_compression.FRAMES):
        pixels = ib_lossy_compression.drawn(kind, np.array([[0.2, 0.5], [0.2, 0.5], [0.8, 0.5]]))
        assert np.array_equal(pixels[0], pixels[1])
        assert not np.allclose(pixels[0], pixels[2])
        assert pixels.shape == (3, ib_lossy_compression.SIDE**2)


def test_a_network_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", 4), ("EVERY", 2), ("WATCHED", 120)):
        monkeypatch.setattr(ib_lossy_compression, name, value)
    found = ib_lossy_compression.measure(Point(ib_lossy_compression.PLANE, 0.0, 0))
    assert found["drawn"] == 1


@pytest.mark.parametrize(("off", "expected"), [(0.05, [HOLDS, HOLDS, HOLDS]), (-0.5, [FAILS, FAILS, HOLDS])])
def test_estimates_from_codes_and_pixels(off: float, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        codes = point.arm.endswith(ib_lossy_compression.CODED)
        return {"off": off if codes else -0.3, "drawn": 1.0, "label before": 0.5, "label after": 1.5}

    assert verdicts("ib-lossy-compression", figures) == expected


# Transfer.


@pytest.mark.parametrize(("slope", "expected"), [(1.0, [HOLDS, HOLDS, HOLDS]), (-1.0, [FAILS, FAILS, FAILS])])
def test_transfer_follows_the_source(slope: float, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        lost = 1 - point.level
        swapped = {1.0: 0.0, 0.85: 0.3, 0.7: 0.2, 0.5: 0.6, 0.3: 0.5}[point.level]
        many, few = 0.9 - slope * 0.1 * lost + noise(point), 0.9 - slope * 0.5 * swapped + noise(point)
        sets = {f"{name}, {column}": value for name in ssl_transfer.SETS for column, value in
                ((ssl_transfer.MANY, many), (ssl_transfer.FEW, few))}  # fmt: skip
        return {"source": point.level, ssl_transfer.MANY: many, ssl_transfer.FEW: few, **sets}

    found = verdicts("ssl-transfer", figures)
    assert found[0] == expected[0]
    if slope > 0:
        assert found[1] == HOLDS
        assert found[2] in (HOLDS, MIXED)


@needs_data
def test_sets_of_images_and_versions() -> None:
    pixels, labels = ssl_transfer.images("shapes")
    assert pixels.ndim == 4
    assert len(pixels) == len(labels)
    assert set(labels.tolist()) == {0, 1, 2}
    assert len(set(ssl_transfer.images("colours")[1].tolist())) == 8


# Rooflines and pipelines.


def test_counts_of_a_decoder_from_its_config() -> None:
    prompt = llm_viewer.measure(Point(llm_viewer.PREFILL, 64.0, 1))
    token = llm_viewer.measure(Point(llm_viewer.DECODE, 64.0, 1))
    assert abs(prompt["off"]) < 0.01
    assert abs(token["off"]) < 0.01
    assert token["bound"] == 1
    assert token["intensity"] < 1 < prompt["intensity"]


@pytest.mark.parametrize(("rank", "expected"), [(0.95, [HOLDS, HOLDS, HOLDS]), (0.5, [HOLDS, HOLDS, FAILS])])
def test_predicted_times_are_judged(rank: float, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        bound = float(point.arm == llm_viewer.DECODE)
        return {"bound": bound, "intensity": 1.0, "off": 0.001, "rank": rank, "error": 0.1 if rank > 0.9 else 0.4}

    assert verdicts("llm-viewer", figures) == expected


@pytest.mark.parametrize(("follows", "expected"), [(True, [HOLDS, HOLDS, HOLDS]), (False, [FAILS, FAILS, FAILS])])
def test_shares_outside_the_network(follows: bool, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        other = 0.01 * point.level if follows else 1.0
        model = 2.0 if point.arm == dnn_server_overheads.WHOLE else 1.0
        wall = other + model + (0 if follows else 3.0 * (point.arm != dnn_server_overheads.WHOLE))
        outside = other / (other + 2.0) if follows else 0.1
        bound = (other + 2) / other
        return {"ms": wall, "model ms": model, "outside": outside, "apart": 0.0 if follows else 0.2, "bound": bound}

    assert verdicts("dnn-server-overheads", figures) == expected


@needs_data
def test_images_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    monkeypatch.setattr(dnn_server_overheads, "ITEMS", 2)
    monkeypatch.setattr(dnn_server_overheads, "ROUNDS", 1)
    dnn_server_overheads.sent.cache_clear()
    try:
        found = dnn_server_overheads.measure(Point(dnn_server_overheads.WHOLE, 64.0, 0))
    finally:
        dnn_server_overheads.sent.cache_clear()
    assert 0 < found["outside"] < 1
    assert found["apart"] < 0.05


# The contrastive bottleneck.


def test_a_token_is_planted_by_label() -> None:
    labels = torch.tensor([0, 1] * 500)
    split = cvib.Split(torch.full((1000, 5), 7), labels)
    found = cvib.planted(split, (0.1, 0.9), 0)
    carries = found.ids[:, 1] == cvib.PLANTED
    assert carries[labels == 1].float().mean() == pytest.approx(0.9, abs=0.05)
    assert carries[labels == 0].float().mean() == pytest.approx(0.1, abs=0.05)
    assert torch.equal(found.ids[:, 2:], split.ids[:, 2:])
    assert not (split.ids == cvib.PLANTED).any()


@pytest.mark.parametrize(("lost", "expected"), [(0.1, [HOLDS, HOLDS, HOLDS]), (0.5, [FAILS, FAILS, FAILS])])
def test_leaning_on_a_token(lost: float, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        own = point.arm == cvib.OURS
        clean = 0.8 - (0.1 if own and lost > 0.3 else 0.0)
        return {"clean": clean, "lost": (lost if own else 0.3) + noise(point), "turned": 0.5}

    assert verdicts("cvib", figures) == expected


def test_classifiers_are_trained_beside_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    own = cvib.Split(torch.randint(2, 20, (64, 6)), labels)
    monkeypatch.setattr(cvib, "_words", lambda: (None, torch.randn(20, 8, generator=torch.Generator().manual_seed(0))))
    monkeypatch.setattr(
        cvib, "data", lambda _: (cvib.planted(own, (0.0, 1.0), 0), own, cvib.planted(own, (1.0, 0.0), 0))
    )
    monkeypatch.setattr(cvib, "EPOCHS", 25)
    first, again = (cvib.measure(Point(cvib.OURS, 1e-3, 0)) for _ in range(2))
    plain = cvib.measure(Point(cvib.PLAIN, 0.0, 0))
    assert first == again
    assert plain["lost"] == pytest.approx(plain["clean"] - plain["turned"])
    assert plain["turned"] < 0.3  # the token alone decides


# Cramming.


@pytest.mark.parametrize(("held", "expected"), [(30.0, [HOLDS, HOLDS, HOLDS]), (90.0, [FAILS, FAILS, FAILS])])
def test_what_a_vector_holds(held: float, expected: list[str]) -> None:
    def figures(point: Point) -> dict[str, Any]:
        if point.arm == cramming_1568.RANDOM:
            return {"tokens": 8.0, "bits": 28.0}
        if point.arm == cramming_1568.SMALLER:
            return {"tokens": 5.0 if held < 60 else 12.0, "bits": 20.0}
        if held > 60:
            return {"tokens": 9.0 - 2 * (point.level > 1), "bits": held}
        return {"tokens": 15.0 + 5 * (point.level > 1), "bits": held}

    assert verdicts("cramming-1568", figures) == expected


def test_random_tokens_are_the_same_again() -> None:
    first, again = cramming_1568.random_tokens(3), cramming_1568.random_tokens(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert {len(one) for one in first} == {cramming_1568.LONGEST}
    assert int(min(one.min() for one in first)) >= 2
