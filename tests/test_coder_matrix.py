"""Every coder on every anatomy: predicted equals measured, saved equals loaded, the same seed the same bytes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import networks
from isthmus import _loader
from isthmus.bottlenecks.coder import MatrixStatistics, Setting
from isthmus.bottlenecks.curves import coded_matrices
from isthmus.bottlenecks.rank.maestro import Maestro
from isthmus.bottlenecks.registry import CODERS, coder
from isthmus.errors import BadInput
from isthmus.flow.coding import code_matrices, file_bytes, refitted
from isthmus.network import Network
from isthmus.plan import Coding
from isthmus.relevance.sensitivity import Sensitivity
from isthmus.storage.artifact import save_artifact
from isthmus.storage.coded import Coded, decode
from isthmus.storage.holders import with_codes
from isthmus.storage.weights import weight_bytes
from narrowed import RECORD, auto, narrowed
from test_storage import same_outputs

OTHERS = [family for family in networks.ARCHITECTURES if family != "bert"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    _loader.install()
    # It trains; that a thousand steps reach the best factors is proved in test_more_claims.py.
    monkeypatch.setitem(CODERS, "maestro", partial(Maestro, steps=100))


@cache
def network_of(family: str) -> Network:
    return narrowed(family)


def statistics_of(shape: tuple[int, int], seed: int = 0) -> MatrixStatistics:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (200, shape[1])).astype(np.float32) * rng.gamma(1, 1, shape[1]).astype(np.float32)
    moments = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return MatrixStatistics(Sensitivity(rng.gamma(2, 1, shape[0]), np.diag(moments).astype(float)), moments)


def middle(name: str, shape: tuple[int, int]) -> Setting:
    settings = coder(name).settings(shape)
    return settings[len(settings) // 2]


@cache
def coded(name: str, family: str) -> tuple[tuple[Coding, ...], dict[str, Coded]]:
    model = network_of(family).model
    codings = []
    for matrix in coded_matrices(model):
        rows, columns = model.get_parameter(matrix).shape
        if coder(name).settings((rows, columns)):
            setting = middle(name, (rows, columns))
            codings.append(
                Coding(parameter=matrix, coder=name, bits=setting.bits, group=setting.group, rank=setting.rank)
            )
    shapes = {one.parameter: tuple(model.get_parameter(one.parameter).shape) for one in codings}
    statistics = {matrix: statistics_of((shape[0], shape[1])) for matrix, shape in shapes.items()}
    return tuple(codings), code_matrices(network_of(family), codings, statistics, seed=0)


# Every coder on BERT and on two of the other families in turn, every family with six coders or more: what a family
# brings to a coder is the shapes of its matrices, of which each is narrowed to others.
TURNS = [
    (name, family)
    for turn, name in enumerate(CODERS)
    for family in ("bert", OTHERS[turn % len(OTHERS)], OTHERS[(turn + 2) % len(OTHERS)])
]


@pytest.mark.parametrize(("name", "family"), TURNS)
def test_predicted_equals_measured_and_saved_equals_loaded(name: str, family: str, tmp_path: Path) -> None:
    network, (codings, codes) = network_of(family), coded(name, family)
    assert codings, "no matrix of this anatomy can be coded"
    finished = with_codes(network, codes)
    save_artifact(finished, tmp_path / "small", RECORD)
    assert weight_bytes(tmp_path / "small") == file_bytes(network, codes)
    same_outputs(finished.model, auto(family).from_pretrained(tmp_path / "small"))


NARROWER = [(96, 57), (80, 61), (61, 64), (33, 48)]


@pytest.mark.parametrize("after", NARROWER)
@pytest.mark.parametrize("name", CODERS)
def test_every_setting_of_a_whole_matrix_has_one_for_what_is_left_of_it(name: str, after: tuple[int, int]) -> None:
    """Columns that vectors do not fill, ranks that are worth more of a smaller matrix."""
    before, one = (96, 64), coder(name)
    weight = np.random.default_rng(0).normal(0, 1, after).astype(np.float32)
    for setting in one.settings(before):
        found = refitted(one, setting, before, after)
        assert found is not None
        assert one.code(weight, statistics_of(after), found).shape == after
        if found != setting and not setting.rank:
            assert found.bits <= setting.bits or found.bits == min(other.bits for other in one.settings(after))


@pytest.mark.parametrize("name", CODERS)
def test_what_is_left_may_be_too_small_to_be_coded(name: str) -> None:
    one = coder(name)
    for setting in one.settings((96, 64))[:1]:
        assert refitted(one, setting, (96, 64), (96, 64)) == setting
        found = refitted(one, setting, (96, 64), (2, 3))
        assert (found is None) == (not one.settings((2, 3)))


def test_a_rank_keeps_its_share_of_the_numbers() -> None:
    one = coder("alds")
    for setting in one.settings((96, 64)):
        found = refitted(one, setting, (96, 64), (48, 32))
        assert found is not None
        slices, before = 32 // found.group, setting.rank / (64 // setting.group)
        numbers = found.rank / slices * (slices * 48 + 32)
        least = min(
            other.rank / (32 // other.group) * (32 // other.group * 48 + 32) for other in one.settings((48, 32))
        )
        share = before * (64 // setting.group * 96 + 64) / (96 * 64)
        assert numbers / (48 * 32) <= share + 1e-9 or numbers == least


@pytest.mark.parametrize("name", CODERS)
def test_the_same_seed_gives_the_same_code(name: str) -> None:
    network, (codings, codes) = network_of("bert"), coded(name, "bert")
    first = codings[0]
    shape = tuple(network.model.get_parameter(first.parameter).shape)
    again = code_matrices(network, [first], {first.parameter: statistics_of((shape[0], shape[1]))}, seed=0)
    np.testing.assert_array_equal(decode(again[first.parameter]), decode(codes[first.parameter]))


@pytest.mark.parametrize("name", CODERS)
def test_a_weight_that_is_no_number_is_refused(name: str) -> None:
    weight = np.ones((48, 64), dtype=np.float32)
    weight[3, 5] = np.nan
    with pytest.raises(BadInput, match="row 3, column 5 is not a finite number"):
        coder(name).code(weight, statistics_of((48, 64)), middle(name, (48, 64)))


@pytest.mark.parametrize("name", CODERS)
def test_settings_are_finest_first(name: str) -> None:
    """By what they leave of a matrix whose rows and columns are unlike."""
    rng = np.random.default_rng(1)
    weight = (rng.normal(0, 1, (64, 96)) * rng.gamma(2, 1, (64, 1)) * rng.gamma(2, 1, 96)).astype(np.float32)
    own, settings = statistics_of((64, 96)), coder(name).settings((64, 96))
    errors = [float(np.square(decode(coder(name).code(weight, own, one)) - weight).mean()) for one in settings]
    assert errors[0] <= errors[-1]
    assert len(settings) == 1 or errors[0] < float(np.square(weight).mean())


def test_an_unknown_coder_is_refused_with_the_near_one() -> None:
    with pytest.raises(BadInput, match="did you mean squeezellm"):
        coder("squeezelm")


def test_a_coded_network_trains_no_further_unseen() -> None:
    """What is saved is what the codes say, not what the weights have become since."""
    network, (_, codes) = network_of("bert"), coded("deepcabac", "bert")
    finished = with_codes(network, codes)
    for name, code in codes.items():
        torch.testing.assert_close(finished.model.get_parameter(name), torch.from_numpy(decode(code)), rtol=0, atol=0)
    assert replace(finished, codes={}).codes == {}
