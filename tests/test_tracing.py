"""Following tensors: labels through operators, slices with owners, gates of group norms, damaged descriptions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import visions
from isthmus.errors import BadArtifact
from isthmus.sites import Gate, Site, Slice, discover, narrow_model
from isthmus.sites.gates import entry_scale, gated_group_norm, unit_sums
from isthmus.sites.labels import Ties, Value, support
from isthmus.sites.operators import elementwise, joined, parted, product
from isthmus.sites.site import common_module
from isthmus.sites.surgery import slice_index
from isthmus.sites.tracing import trace
from isthmus.storage.narrowing import apply_narrowing, describe_narrowing

FAST = settings(max_examples=30, deadline=None)


def groups(ties: Ties, labels: Tensor) -> list[set[int]]:
    """Return which places of ``labels`` belong together, without those that are fixed."""
    units = ties.units()[labels.reshape(-1).numpy()]
    return [set(np.flatnonzero(units == unit).tolist()) for unit in dict.fromkeys(units.tolist()) if unit]


# Ties.


@FAST
@given(pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14))
def test_ties_are_an_equivalence(pairs: list[tuple[int, int]]) -> None:
    """Against a naive closure."""
    ties = Ties()
    ties.fresh(11)
    for one, other in pairs:
        ties.tie(torch.tensor([one]), torch.tensor([other]))
    sets = [{place} for place in range(12)]
    for one, other in pairs:
        first = next(found for found in sets if one in found)
        second = next(found for found in sets if other in found)
        if first is not second:
            sets = [found for found in sets if found not in (first, second)] + [first | second]
    units = ties.units()
    for found in sets:
        assert len({int(units[place]) for place in found}) == 1
        assert (0 in found) == (int(units[min(found)]) == 0)
    assert len(set(units.tolist())) == len(sets)


def test_what_is_added_is_tied_and_what_is_bare_is_fixed() -> None:
    ties = Ties()
    one, other = ties.fresh(4), ties.fresh(4)
    left, right = Value((2, 4), (one.reshape(1, 4),)), Value((4,), (other,))
    result = elementwise(ties, [left, right], (2, 4))
    assert groups(ties, torch.cat((one, other))) == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    assert result.along(-1) is not None
    assert elementwise(ties, [result, Value((1, 1))], (2, 4)).factors, "a number for all of them is in nobody's way"
    assert not elementwise(ties, [result, Value((4,))], (2, 4)).factors
    assert groups(ties, one) == []


def test_heads_come_of_products_of_activations() -> None:
    """Queries and keys of 2 heads of 3: what is summed over leaves as a whole, so a head does."""
    ties = Ties()
    query, key = (Value((2, 5, 3), (ties.fresh(6).reshape(2, 1, 3),)) for _ in range(2))
    turned = Value((2, 3, 5), tuple(factor.transpose(1, 2) for factor in key.factors))
    scores, summed, batch = product(ties, query, turned, weight=False)
    assert summed is None
    assert batch is not None
    assert [support(factor) for factor in scores.factors] == [[0]]
    every = torch.cat((query.factors[0].reshape(-1), key.factors[0].reshape(-1)))
    assert groups(ties, every) == [{0, 1, 2, 6, 7, 8}, {3, 4, 5, 9, 10, 11}]


def test_a_weight_ties_what_it_multiplies_one_by_one() -> None:
    ties = Ties()
    entering = Value((1, 5, 3), (ties.fresh(3).reshape(1, 1, 3),))
    weight = Value((1, 3, 4), (ties.fresh(3).reshape(1, 3, 1), ties.fresh(4).reshape(1, 1, 4)))
    result, summed, _ = product(ties, entering, weight, weight=True)
    assert summed is not None
    assert groups(ties, torch.cat((entering.factors[0].reshape(-1), weight.factors[0].reshape(-1)))) == [
        *({0, 3}, {1, 4}, {2, 5})
    ]
    assert result.along(2) is not None


def test_concatenation_and_cuts() -> None:
    ties = Ties()
    one, other = ties.fresh(2), ties.fresh(3)
    values = [Value((1, len(labels), 7), (labels.reshape(1, -1, 1),)) for labels in (one, other)]
    both = joined(ties, [*values, Value((1, 1, 7))], 1, (1, 6, 7))
    labels = both.along(1)
    assert labels is not None
    assert labels.tolist() == [*one.tolist(), *other.tolist(), 0]
    parted(ties, both, 1, [2, 2, 2])
    assert groups(ties, labels) == [{0, 2, 4}], "the third part ends with what cannot leave"
    fresh = Value((6,), (ties.fresh(6),))
    parted(ties, fresh, 0, [3, 3])
    assert groups(ties, fresh.factors[0]) == [{0, 3}, {1, 4}, {2, 5}]
    parted(ties, fresh, 0, [2, 4])
    assert groups(ties, fresh.factors[0]) == []


class Attending(nn.Module):
    """Attention by hand, with a fused projection whose parts are unbound."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside, self.last = nn.Linear(8, 36), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        query, key, value = self.inside(x).view(batch, tokens, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.softmax(query @ key.transpose(-2, -1), -1)
        return self.last(self.outside((scores @ value).transpose(1, 2).reshape(batch, tokens, -1)).mean(1))


def test_a_fused_projection_is_followed() -> None:
    found = trace(Attending().eval(), {"x": torch.randn(1, 8, 3, 3)})
    inside = found.tensors["inside.weight"].along(0)
    assert inside is not None
    parts = [{unit * 3 + place + 12 * part for place in range(3) for part in range(3)} for unit in range(4)]
    assert groups(found.ties, inside) == parts
    assert not found.obstacles


# Slices and gates whose entries lie anywhere.


@FAST
@given(st.lists(st.integers(-1, 3), min_size=4, max_size=20), st.sets(st.integers(0, 3), min_size=1))
def test_entries_by_owner(drawn: list[int], keep: set[int]) -> None:
    owners = [
        *drawn,
        *(unit for unit in range(4) for _ in range(max(map(drawn.count, range(4))) - drawn.count(unit) + 1)),
    ]
    each = owners.count(0)
    part = Slice("x", 0, each, 1, tuple(owners))
    assert part.entries(4).tolist() == [[place for place, unit in enumerate(owners) if unit == u] for u in range(4)]
    staying = [place for place, unit in enumerate(owners) if unit in {-1, *keep}]
    assert slice_index(part, 4, sorted(keep)).tolist() == staying
    gate, value = Gate("x", "input", 1, 1, tuple(owners)), torch.tensor([0.0, 0.5, 1.0, 2.0])
    scale = entry_scale(gate, value, 4)
    assert scale.shape == (len(owners), 1, 1)
    assert scale.reshape(-1).tolist() == [1.0 if unit < 0 else value[unit].item() for unit in owners]
    entries = torch.arange(len(owners), dtype=torch.float64)
    sums = [sum(place for place, unit in enumerate(owners) if unit == u) for u in range(4)]
    assert unit_sums(gate, entries, 4).tolist() == sums


def test_two_sites_own_parts_of_one_dimension() -> None:
    model = nn.Sequential(nn.Linear(5, 2))
    sites = [
        Site("a", "neurons", 2, (Slice("0.weight", 1, 1, 1, (-1, 0, -1, 1, -1)),)),
        Site("b", "neurons", 2, (Slice("0.weight", 1, 1, 1, (0, -1, 1, -1, -1)),)),
    ]
    narrow = narrow_model(model, sites, {"a": [1], "b": [0]})
    assert torch.equal(narrow[0].weight, model[0].weight[:, [0, 3, 4]])
    assert narrow[0].in_features == 3


@FAST
@given(mask=st.lists(st.booleans(), min_size=6, max_size=6).filter(any), affine=st.booleans())
def test_a_gated_group_norm_is_the_narrower_norm(mask: list[bool], affine: bool) -> None:
    generator = torch.Generator().manual_seed(sum(mask))
    norm = nn.GroupNorm(1, 6, affine=affine, dtype=torch.float64)
    keep = torch.tensor(mask)
    narrow = nn.GroupNorm(1, int(keep.sum()), affine=affine, dtype=torch.float64)
    maps = torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        if affine:
            for parameter in norm.parameters():
                parameter.copy_(torch.randn(6, generator=generator))
            narrow.weight.copy_(norm.weight[keep])
            narrow.bias.copy_(norm.bias[keep])
        found = gated_group_norm(norm, maps, keep.double())
        torch.testing.assert_close(found[:, keep], narrow(maps[:, keep]), rtol=1e-10, atol=1e-12)
        assert not found[:, ~keep].any()


def test_the_module_that_holds_all() -> None:
    assert common_module(["a.b.c.weight", "a.b.d.weight", "a.b.d.bias"]) == "a.b"
    assert common_module(["a.bc.weight", "a.bd.weight"]) == "a"
    assert common_module(["a.weight", "b.weight"]) == ""


# Descriptions of narrowed CNNs are checked before they are believed.


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 12, 3, groups=6)
        self.group = nn.GroupNorm(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.group(self.deep(F.relu(self.norm(self.conv(x))))).mean((2, 3))


def described() -> tuple[nn.Module, dict[str, Any]]:
    whole = Small().eval()
    parts = (
        *(Slice("conv.weight", 0), Slice("conv.bias", 0), Slice("norm.weight", 0), Slice("norm.bias", 0)),
        *(Slice("norm.running_mean", 0), Slice("norm.running_var", 0), Slice("deep.weight", 0, 2)),
        *(Slice("deep.bias", 0, 2), Slice("group.weight", 0, 2), Slice("group.bias", 0, 2)),
    )
    narrow = narrow_model(whole, [Site("a", "channels", 6, parts)], {"a": [0, 1, 4, 5]})
    description = describe_narrowing(narrow, skeleton=copy.deepcopy(whole))
    assert description is not None
    return whole, description


def test_a_description_of_a_cnn_rebuilds_it() -> None:
    whole, description = described()
    assert description["attributes"] == {}
    apply_narrowing(whole, description, "Small")
    model: Any = whole
    assert (model.deep.groups, model.deep.in_channels, model.deep.out_channels) == (4, 4, 8)
    assert (model.group.num_groups, model.group.num_channels, model.norm.num_features) == (2, 8, 4)
    assert whole(torch.randn(2, 3, 5, 5)).shape == (2, 8)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("norm.running_mean", [3], "rows"),
        ("deep.weight", [7, 1, 3, 3], "in groups of 2"),
        ("group.weight", [6], "in groups of 4"),
        ("conv.weight", [4, 3, 2, 1], "is not within"),
        ("norm.running_var", [7], "is not within"),
    ],
)
def test_a_damaged_description_of_a_cnn_is_refused(name: str, shape: list[int], reason: str) -> None:
    whole, description = described()
    with pytest.raises(BadArtifact, match=reason):
        apply_narrowing(whole, {**description, "shapes": {**description["shapes"], name: shape}}, "Small")


def test_sites_are_the_same_each_time() -> None:
    assert discover(visions.network("swin")) == discover(visions.network("swin"))
