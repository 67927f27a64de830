"""Deltas: what fine-tuning changed, within a budget to the byte; saved equals loaded; another base is refused."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import networks
import small
from isthmus.bottlenecks.rank.residual import factored, ordered, residual_code, spectrum_of
from isthmus.errors import BadArtifact, BadInput, IsthmusError, UnreachableBudget
from isthmus.flow.delta import make_delta, relative_error
from isthmus.flow.study import fingerprint as fingerprint_of_study
from isthmus.network import Network
from isthmus.storage.blobs import pack
from isthmus.storage.coded import Product, decode
from isthmus.storage.delta import delta_bytes, load_delta, matrices_of, save_delta, tensors_of
from isthmus.storage.delta_file import pack_delta, read_delta
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.opening import open as open_network

BASE = "bert"
LAYERS = {"bert": {"num_hidden_layers": 1}, "distilbert": {"n_layers": 1}, "modernbert-classifier": {}}


def fine_tuned(base: Network, seed: int = 5) -> Network:
    """Return a network whose matrices differ from the base's by a few strong directions and a little of all others."""
    import copy

    model = copy.deepcopy(base.model)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 2:
                rows, columns = parameter.shape
                rank = 1 + number % 5
                parameter.add_(0.05 * normal(rows, rank) @ normal(rank, columns) + 0.002 * normal(rows, columns))
            else:
                parameter.add_(0.01 * normal(*parameter.shape))
    return replace(base.with_model(model), name="tuned")


@pytest.fixture(scope="module")
def base() -> Network:
    return networks.tiny(BASE, num_hidden_layers=1)


@pytest.fixture(scope="module")
def tuned(base: Network) -> Network:
    return fine_tuned(base)


def falling(shape: tuple[int, int], values: list[float], seed: int = 0) -> np.ndarray:
    """Return a matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(shape[0], len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(shape[1], len(values))))[0]
    return ((left * values) @ right.T).astype(np.float32)


def squares(matrix: np.ndarray) -> float:
    return float((matrix.astype(np.float64) ** 2).sum())


def test_a_truncated_product_loses_the_singular_values_left_out():
    residual = falling((40, 24), [4.0, 2.0, 1.0, 0.5, 0.25])
    spectrum = spectrum_of(residual)
    np.testing.assert_allclose(spectrum.values, [4.0, 2.0, 1.0, 0.5, 0.25], rtol=1e-5)
    for rank in range(1, 6):
        product = factored(spectrum, rank, 8)
        assert product.shape == (40, 24)
        assert max(np.abs(factor.integers).max() for factor in (product.left, product.right)) <= 127
        tail = sum(value**2 for value in [4.0, 2.0, 1.0, 0.5, 0.25][rank:])
        # Eight bits lose about 1e-4 of what is kept.
        assert squares(decode(product) - residual) == pytest.approx(tail, abs=3e-4 * 21.3)
    assert np.abs(factored(spectrum, 5, 4).left.integers).max() <= 7


def test_no_ranks_of_as_many_bytes_save_more():
    """Against every choice of ranks of three matrices."""
    shapes = {"a": (30, 10), "b": (8, 6), "c": (20, 20)}
    rng = np.random.default_rng(1)
    spectra = {
        name: spectrum_of(falling(shape, sorted(rng.gamma(1, 1, 5), reverse=True), seed))
        for seed, (name, shape) in enumerate(shapes.items())
    }
    order = ordered(spectra)
    assert len(order) == 15

    def cost_and_gain(ranks: tuple[int, ...]) -> tuple[int, float]:
        cost = sum(rank * sum(shape) for rank, shape in zip(ranks, shapes.values(), strict=True))
        gain = sum(squares(one.values[:rank]) for rank, one in zip(ranks, spectra.values(), strict=True))
        return cost, gain

    everything = [cost_and_gain(ranks) for ranks in itertools.product(range(6), repeat=3)]
    for count in range(16):
        taken = order[:count]
        cost, gain = cost_and_gain(tuple(taken.count(name) for name in shapes))
        assert gain >= max(other for least, other in everything if least <= cost) - 1e-9


def test_ranks_by_matrix_lose_less_than_one_rank_for_all(base: Network, tuned: Network):
    old, new = matrices_of(base), matrices_of(tuned)
    spectra = {name: spectrum_of(new[name] - old[name]) for name in old}
    for rank in (1, 3):
        alike = {name: factored(one, min(rank, len(one.values)), 4) for name, one in spectra.items()}
        held = sum(len(pack(code)) for code in alike.values())
        ours = residual_code(old, new, held, bits=(4,))
        assert sum(len(pack(code)) for code in ours.values()) <= held
        lost = [
            sum(squares(new[name] - old[name] - (decode(codes[name]) if name in codes else 0)) for name in old)
            for codes in (alike, ours)
        ]
        assert lost[1] < 0.9 * lost[0]


def test_the_width_that_loses_least_is_taken():
    def largest(values: list[float], budget: int) -> int:
        zero = np.zeros((60, 50), dtype=np.float32)
        code = residual_code({"w": zero}, {"w": falling((60, 50), values)}, budget)["w"]
        assert isinstance(code, Product)
        assert len(pack(code)) <= budget
        return int(np.abs(code.left.integers).max())

    assert largest([3.0, 0.001], 340) > 7  # one component matters: it gets eight bits
    assert largest([3.0, 2.9, 2.8], 340) <= 7  # three do, and fit with four bits each


def test_the_budget_is_kept_to_the_byte_and_more_bytes_lose_less(base: Network, tuned: Network, tmp_path: Path):
    fixed = len(delta_bytes(base, tuned, {}))
    errors = []
    for number, budget in enumerate(fixed + step for step in (0, 900, 2500, 7000)):
        made = make_delta(base, tuned, tmp_path / f"{number}.delta", budget)
        size = (tmp_path / f"{number}.delta").stat().st_size
        assert size == made["bytes"] <= budget
        assert sum(made["ranks"].values()) > 0 or number == 0
        restored = load_delta(base, tmp_path / f"{number}.delta")
        assert made["error"] == pytest.approx(relative_error(base, tuned, restored))
        errors.append(made["error"])
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == 4
    assert errors[0] == pytest.approx(1, abs=0.05)
    assert errors[-1] < 0.15
    with pytest.raises(UnreachableBudget, match=f"give at least bytes={fixed}"):
        make_delta(base, tuned, tmp_path / "none.delta", fixed - 1)
    assert not (tmp_path / "none.delta").exists()


def test_the_budget_is_used(base: Network, tuned: Network):
    old, new = matrices_of(base), matrices_of(tuned)
    for budget in (500, 4000):
        held = sum(len(pack(code)) for code in residual_code(old, new, budget, bits=(8,)).values())
        assert budget - 200 < held <= budget  # the largest component takes 152 bytes
    assert residual_code(old, new, 0) == {}


@pytest.mark.parametrize("name", LAYERS)
def test_loaded_equals_what_the_codes_say(name: str, tmp_path: Path):
    base = networks.tiny(name, **LAYERS[name])
    tuned = replace(fine_tuned(base), max_length=48)
    codes = residual_code(matrices_of(base), matrices_of(tuned), 4000)
    size = save_delta(base, tuned, tmp_path / "a.delta", codes)
    assert size == (tmp_path / "a.delta").stat().st_size == len(delta_bytes(base, tuned, codes))
    loaded = load_delta(base, tmp_path / "a.delta")
    before, target, found = tensors_of(base), tensors_of(tuned), tensors_of(loaded)
    assert found.keys() == before.keys()
    for key, array in found.items():
        if key in codes:
            expected = before[key] + decode(codes[key])
        elif array.ndim == 2 or array.dtype.kind != "f":
            expected = before[key]
        else:
            expected = before[key] + (target[key] - before[key]).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(array, expected, err_msg=key)
    assert (loaded.name, loaded.max_length, loaded.pooling) == (f"{base.name}+a", 48, tuned.pooling)
    twice = load_delta(base, tmp_path / "a.delta")
    inputs = networks.tokens()
    with torch.inference_mode():
        assert torch.equal(loaded.model(**inputs)[0], twice.model(**inputs)[0])
    assert fingerprint(base) == fingerprint(networks.tiny(name, **LAYERS[name])), "the base must stay as it was"


def test_a_network_that_was_not_tuned_takes_no_codes(base: Network, tmp_path: Path):
    made = make_delta(base, base, tmp_path / "same.delta", 10_000)
    assert made["error"] == 0
    assert set(made["ranks"].values()) == {0}
    assert made["bytes"] < 1000
    assert fingerprint(load_delta(base, tmp_path / "same.delta")) == fingerprint(base)


def test_the_fingerprint_is_that_of_a_study(base: Network, tuned: Network):
    assert fingerprint(base) == fingerprint_of_study(base) != fingerprint(tuned)


def test_another_base_is_refused_by_name(base: Network, tuned: Network, tmp_path: Path):
    save_delta(base, tuned, tmp_path / "a.delta", {})
    other = replace(networks.tiny(BASE, seed=1, num_hidden_layers=1), name="another")
    with pytest.raises(BadInput, match=r"was made for bert \(weights .*\) and not for another") as caught:
        load_delta(other, tmp_path / "a.delta")
    assert "\n" not in str(caught.value)


def test_networks_that_are_not_alike_are_refused(base: Network, tuned: Network, tmp_path: Path):
    cases = {
        "in one of the two only": networks.tiny("distilbert"),
        r"is float32 \[120, 32\] in the base, float32 \[130, 32\] here": networks.tiny(
            BASE, num_hidden_layers=1, vocab_size=130
        ),
    }
    for message, other in cases.items():
        with pytest.raises(BadInput, match=message):
            make_delta(base, other, tmp_path / "a.delta", 10**6)
    wild = fine_tuned(base)
    with torch.no_grad():
        wild.model.get_parameter("encoder.layer.0.output.dense.bias")[3] = 1e6
    with pytest.raises(BadInput, match=r"output.dense.bias differs by more than float16 can say"):
        make_delta(base, wild, tmp_path / "a.delta", 10**6)
    with torch.no_grad():
        wild.model.get_parameter("encoder.layer.0.output.dense.bias")[3] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinite"):
        make_delta(base, wild, tmp_path / "a.delta", 10**6)
    weight = {"w": np.ones((3, 3), dtype=np.float32)}
    for tuned_weight, message in (({}, "in one network only"), ({"w": np.ones((2, 3))}, r"is \[3, 3\] in the base")):
        with pytest.raises(BadInput, match=message):
            residual_code(weight, tuned_weight, 100)
    with pytest.raises(BadInput, match="w: the weight at row 0, column 0 is not a finite number"):
        residual_code(weight, {"w": weight["w"] * np.inf}, 100)
    with pytest.raises(BadInput, match="is negative"):
        residual_code(weight, weight, -1)
    codes = residual_code({"w": weight["w"]}, {"w": 2 * weight["w"]}, 300)
    with pytest.raises(BadInput, match="w: the base has no matrix of this name"):
        delta_bytes(base, tuned, codes)
    assert list(tmp_path.iterdir()) == []


def written(base: Network, tuned: Network, path: Path) -> bytes:
    save_delta(base, tuned, path, residual_code(matrices_of(base), matrices_of(tuned), 2000))
    return path.read_bytes()


def test_damage_is_refused_in_one_line(base: Network, tuned: Network, tmp_path: Path):
    good = written(base, tuned, tmp_path / "good.delta")
    bad = tmp_path / "bad.delta"
    rng = np.random.default_rng(0)
    changed = [good[: int(cut)] for cut in rng.integers(0, len(good), 20)] + [good + b"\0", b"", b"{}"]
    for place in rng.integers(0, len(good), 150).tolist():
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(rng.integers(8))
        changed.append(bytes(flipped))
    for data in changed:
        bad.write_bytes(data)
        with pytest.raises(BadArtifact) as caught:
            load_delta(base, bad)
        assert "\n" not in str(caught.value)
        assert str(bad) in str(caught.value)


def resealed(header: dict[str, Any], tensors: dict[str, np.ndarray], **changes: Any) -> bytes:
    return pack_delta({**header, **changes}, tensors)


def test_a_file_that_someone_made_up_is_not_believed(base: Network, tuned: Network, tmp_path: Path):
    """The digest is right each time, for whoever changes a file can write it anew."""
    written(base, tuned, tmp_path / "good.delta")
    header, tensors = read_delta(tmp_path / "good.delta")
    coded = next(name for name in sorted(tensors) if name.endswith("_coded"))
    half = next(name for name in sorted(tensors) if name.endswith("_half"))
    own = coded.removesuffix("_coded")
    shape = header["matrices"][own]
    others = {name: entry for name, entry in header["matrices"].items() if name != own}
    huge = np.full_like(tensors[half], 6e4)
    lies: list[tuple[dict[str, Any], dict[str, np.ndarray], str]] = [
        ({"settings": ["sum", True, 64]}, {}, "header is not that of a delta"),
        ({"settings": ["mean", True, 10**9]}, {}, "header is not that of a delta"),
        ({"base": {"name": "x"}}, {}, "header is not that of a delta"),
        ({"more": 1}, {}, "header is not that of a delta"),
        ({"matrices": others}, {}, "not those that were written"),
        ({"matrices": {**header["matrices"], own: [*shape[:2], shape[2] + 1]}}, {}, "is announced as"),
        ({"matrices": {**others, "ghost": shape}}, {coded: None, "ghost_coded": tensors[coded]}, "nothing of the base"),
        ({}, {coded: tensors[coded][:-1]}, "coded matrix: truncated or damaged"),
        ({}, {half: tensors[half][:-1]}, "does not fit"),
        ({}, {half: tensors[half].astype(np.float32)}, "does not fit"),
        ({}, {"embeddings.position_ids": np.zeros(3, dtype=np.uint8)}, "is (nothing of the base|neither)"),
        ({}, {half: np.full_like(huge, np.inf)}, "would not be finite"),
    ]  # fmt: skip
    for number, (changes, swapped, message) in enumerate(lies):
        contents = {name: array for name, array in {**tensors, **swapped}.items() if array is not None}
        path = tmp_path / f"{number}.delta"
        path.write_bytes(resealed(header, contents, **changes))
        with pytest.raises(BadArtifact, match=message) as caught:
            load_delta(base, path)
        assert "\n" not in str(caught.value)


def test_a_later_version_and_other_files_are_refused(
    base: Network, tuned: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from safetensors.numpy import save_file

    with monkeypatch.context() as context:
        context.setattr("isthmus.storage.delta_file.DELTA_VERSION", 2)
        save_delta(base, tuned, tmp_path / "later.delta", {})
    with pytest.raises(BadArtifact, match="version 2 is newer than 1; upgrade isthmus"):
        load_delta(base, tmp_path / "later.delta")
    save_file({"a": np.zeros(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(BadArtifact, match="holds no delta of isthmus"):
        load_delta(base, tmp_path / "plain.safetensors")
    for text, message in (
        ("{", "not JSON"),
        ("[1]", "no version"),
        ('{"version": 0}', "not that of a delta"),
    ):
        save_file({"a": np.zeros(3)}, tmp_path / "odd.delta", metadata={"isthmus_delta": text})
        with pytest.raises(BadArtifact, match=message):
            load_delta(base, tmp_path / "odd.delta")
    for name in ("none.delta", "."):
        with pytest.raises(BadInput, match="give a file that isthmus saved"):
            load_delta(base, tmp_path / name)


@pytest.mark.parametrize("kind", ["disk", "other", "interrupt"])
def test_a_failure_leaves_nothing(
    base: Network, tuned: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    raised: dict[str, tuple[BaseException, type[BaseException]]] = {
        "disk": (OSError(errno.ENOSPC, "No space left on device"), IsthmusError),
        "other": (OSError(errno.EROFS, "Read-only file system"), BadInput),
        "interrupt": (KeyboardInterrupt(), KeyboardInterrupt),
    }
    error, expected = raised[kind]

    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(expected) as caught:
        make_delta(base, tuned, tmp_path / "a.delta", 9_000)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(base: Network, tuned: Network, tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    for name, message in (("mine", "is there already"), ("mine/below", "no folder that can be written to")):
        with pytest.raises(BadInput, match=message):
            make_delta(base, tuned, tmp_path / name, 9_000)
    assert (tmp_path / "mine").read_text() == "mine"


def test_base_plus_file_is_opened(tmp_path: Path):
    folder = small.write_network(tmp_path / "a+b")
    base = open_network(folder)
    tuned = fine_tuned(base)
    made = make_delta(base, tuned, tmp_path / "new" / "small.delta", 9_000)
    assert made["share"] == made["bytes"] / (folder / "model.safetensors").stat().st_size
    opened = open_network(f"{folder}+{made['file']}")
    assert opened.name == "a+b+small"
    assert fingerprint(opened) == fingerprint(load_delta(base, tmp_path / "new" / "small.delta"))
    with pytest.raises(BadInput, match="there is no file"):
        open_network(f"{folder}+{tmp_path}/none")
