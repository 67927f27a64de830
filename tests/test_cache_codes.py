"""Codes and readers of the cache, and the flat history, against loops and other libraries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from isthmus.bottlenecks.cache.codes.coupled import Coupled, learnt
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.history import History
from isthmus.bottlenecks.cache.packing import pack, packed_bytes, unpack
from isthmus.bottlenecks.cache.reading.magicpig import MagicPig
from isthmus.bottlenecks.cache.reading.reader import Reads
from isthmus.bottlenecks.cache.reading.recycled import Recycled
from isthmus.bottlenecks.cache.roles import Form, Span
from isthmus.errors import BadInput

DEVICE = torch.device("cpu")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 8, 13, 64])
def test_packing_turns_round(bits: int, columns: int) -> None:
    codes = torch.randint(0, 1 << bits, (9, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, columns), codes)
    assert packed.shape == (9, packed_bytes(columns, bits))
    assert packed_bytes(64, bits) == 64 * bits // 8


def span(count: int, group: int) -> Span:
    return Span(torch.arange(count) // group, -(-count // group), torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize("count", [24, 21])
def test_keys_are_rounded_by_channel_and_values_by_token(count: int) -> None:
    keys, values = numbers(count, 6), numbers(count, 10, seed=1)
    keys[:, 2] *= 100
    keys[:, 3] = 1.25
    code = Uniform(3, 2, tokens=8, channels=4)
    entries, groups = code.encode(keys, values, span(count, 8))
    found = code.decode(entries, groups, span(count, 8), Form(6, 10, torch.float32))
    for at in range(count):
        own = keys[at // 8 * 8 : at // 8 * 8 + 8].numpy()
        for channel in range(6):
            low = np.float16(own[:, channel].min())
            step = np.float16((own[:, channel].max() - own[:, channel].min()) / 7)
            level = 0 if step == 0 else np.clip(np.rint((own[at % 8, channel] - float(low)) / float(step)), 0, 7)
            assert float(found[0][at, channel]) == pytest.approx(float(low) + level * float(step), abs=1e-5)
        for start in (0, 4, 8):
            block = values[at, start : start + 4].numpy()
            low, step = np.float16(block.min()), np.float16((block.max() - block.min()) / 3)
            for offset, number in enumerate(block):
                level = np.clip(np.rint((number - float(low)) / float(step)), 0, 3)
                assert float(found[1][at, start + offset]) == pytest.approx(float(low) + level * float(step), abs=1e-5)
    assert torch.equal(found[0][:, 3], keys[:, 3])


def test_bits_by_token_lose_what_bits_by_channel_keep() -> None:
    keys = numbers(32, 16)
    keys[:, 5] *= 500
    form = Form(16, 16, torch.float32)
    others = [channel for channel in range(16) if channel != 5]
    errors = {}
    for axis in ("channel", "token"):
        code = Uniform(4, 4, tokens=32, key_axis=axis)  # type: ignore[arg-type]
        found = code.decode(*code.encode(keys, keys, span(32, 32)), span(32, 32), form)[0]
        errors[axis] = float((found - keys)[:, others].square().mean())
    assert errors["channel"] < 0.05
    assert errors["token"] > 0.5


@pytest.mark.parametrize("bad", [math.inf, math.nan, 1e6])
def test_numbers_beyond_the_grid_are_refused(bad: float) -> None:
    keys = numbers(8, 4)
    keys[3, 1] = bad
    with pytest.raises(BadInput, match="has no code in bits"):
        Uniform(tokens=8).encode(keys, numbers(8, 4), span(8, 8))


@pytest.mark.parametrize("options", [{"key_bits": 0}, {"value_bits": 9}, {"tokens": 0}, {"key_axis": "head"}])
def test_uniform_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="choose"):
        Uniform(**options)


def test_coupled_channels_take_the_nearest_entry_of_their_table() -> None:
    keys, values = numbers(2, 3, 64, 8), numbers(2, 3, 64, 8, seed=1)
    code = learnt(keys, values, channels=4, bits=5)
    flat_keys, flat_values = keys[0].flatten(0, 1), values[0].flatten(0, 1)
    heads = torch.arange(3).repeat_interleave(64)
    own = Span(torch.arange(192), 192, heads)
    entries, groups = code.encode(flat_keys, flat_values, own)
    found = code.decode(entries, groups, own, Form(8, 8, torch.float32))
    for numbers_in, out, tables in zip(
        (flat_keys, flat_values), found, (code.key_tables, code.value_tables), strict=True
    ):
        for head in range(3):
            for group in range(2):
                rows = numbers_in[heads == head][:, 4 * group : 4 * group + 4].numpy()
                table = tables[head, group].float().numpy()
                wanted = table[cdist(rows, table).argmin(1)]
                assert np.allclose(out[heads == head][:, 4 * group : 4 * group + 4].numpy(), wanted, atol=1e-6)
    assert code.sizes(8, 8, 4) == (4, 0)
    assert code.shared_bytes() == 2 * 3 * 2 * 32 * 4 * 2


def test_one_bit_a_channel_is_better_coupled_where_channels_depend_on_each_other() -> None:
    common = numbers(1, 1, 2000, 1)
    keys = common * torch.ones(8) + 0.1 * numbers(1, 1, 2000, 8, seed=3)
    errors = []
    for channels, bits in ((1, 1), (8, 8)):
        code = learnt(keys, keys, channels=channels, bits=bits)
        own = Span(torch.arange(2000), 2000, torch.zeros(2000, dtype=torch.int64))
        entries, groups = code.encode(keys[0, 0], keys[0, 0], own)
        assert entries["keys"].shape[1] == 1
        found = code.decode(entries, groups, own, Form(8, 8, torch.float32))[0]
        errors.append(float((found - keys[0, 0]).square().mean()))
    assert errors[1] < 0.1 * errors[0]


def test_weights_move_the_tables() -> None:
    keys = torch.cat([torch.zeros(1, 1, 50, 2), torch.ones(1, 1, 50, 2)], 2) + 0.01 * numbers(1, 1, 100, 2)
    weights = torch.cat([torch.zeros(1, 1, 50, 2), torch.ones(1, 1, 50, 2)], 2) + 1e-6
    code = learnt(keys, keys, channels=2, bits=1, weights={"keys": weights, "values": torch.ones_like(keys)})
    plain = code.value_tables[0, 0].float()
    assert float((plain.mean(1) - torch.tensor([0.0, 1.0])).abs().max()) < 0.05
    assert float(code.key_tables[0, 0].float().sub(1).abs().min(1).values.max()) < 1.05


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 2, 300, 6), {"channels": 4}, "do not divide"),
        ((1, 2, 30, 8), {}, "calibrate on more"),
    ],
)
def test_tables_that_cannot_be_learnt_are_refused(shape: tuple[int, ...], options: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("calibrate on more", "take more text")):
        learnt(numbers(*shape), numbers(*shape), **options)
    with pytest.raises(BadInput, match="not finite"):
        learnt(torch.full((1, 1, 300, 8), math.nan), numbers(1, 1, 300, 8))
    with pytest.raises(BadInput, match="with tables of shape"):
        Coupled(3, torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 8, 2))


@pytest.mark.parametrize("code", [Plain(), Uniform(8, 8, tokens=3), Uniform(8, 8, key_axis="token")])
def test_history_is_a_list_for_each_head(code: Any) -> None:
    history = History(code, Form(4, 5, torch.float32), 2, 3, DEVICE)
    lists: list[list[torch.Tensor]] = [[] for _ in range(6)]
    random = np.random.default_rng(0)
    for step in range(6):
        counts = torch.from_numpy(random.integers(0, 6, size=(2, 3)))
        total = int(counts.sum())
        keys, values = numbers(total, 4, seed=step), numbers(total, 5, seed=step + 50)
        history.append(keys, values, counts, {"mark": torch.arange(total)[:, None]})
        at = 0
        for segment, count in enumerate(counts.flatten().tolist()):
            lists[segment] += list(torch.cat([keys, values], 1)[at : at + count])
            at += count
        which = torch.from_numpy(random.random(sum(map(len, lists))) < 0.7)
        history.keep(which)
        at = 0
        for segment, held in enumerate(lists):
            lists[segment] = [
                one for one, stays in zip(held, which[at : at + len(held)].tolist(), strict=True) if stays
            ]
            at += len(held)
        if step == 3:
            history.take_rows(torch.tensor([1, 0]))
            lists = lists[3:] + lists[:3]
        assert history.counts.flatten().tolist() == [len(held) for held in lists]
        found = torch.cat(history.dense(), -1).flatten(0, 1)
        for segment, held in enumerate(lists):
            if held:
                assert torch.allclose(found[segment, : len(held)], torch.stack(held), atol=0.05)
    places = torch.stack([torch.tensor([0, 1]) for _ in range(6)]).view(2, 3, 2)
    looked = torch.cat(history.look_up(places), -1)
    there = history.real()[:, :, :2]
    assert int(there.sum()) > 6
    assert torch.allclose(looked[there], torch.cat(history.dense(), -1)[:, :, :2][there])


def test_hashes_sample_keys_with_the_probability_that_is_divided_out() -> None:
    query, keys = numbers(8, seed=1), numbers(12, 8, seed=2) + numbers(8, seed=1)
    cosine = torch.nn.functional.cosine_similarity(query, keys, dim=-1)
    predicted = MagicPig(bits=3, tables=6).probability(cosine)
    hits = torch.zeros(12, dtype=torch.float64)
    trials = 1500
    for seed in range(trials):
        pig = MagicPig(bits=3, tables=6, seed=seed)
        hits += (pig.hashes(query) == pig.hashes(keys)).sum(-1) >= 2
    error = (hits / trials - predicted).abs() / (predicted * (1 - predicted) / trials).sqrt()
    assert float(error.max()) < 4.5


def test_sampled_attention_estimates_the_sum_of_all() -> None:
    keys, values, query = numbers(1, 1, 40, 8), numbers(1, 1, 40, 8, seed=1), 1.5 * numbers(1, 1, 2, 1, 8, seed=2)
    mean = keys.mean(2)
    sums = []
    for seed in range(600):
        pig, state = MagicPig(bits=4, tables=8, seed=seed), Reads(held={"mean": mean})
        history = History(Plain(), Form(8, 8, torch.float32), 1, 1, DEVICE)
        flat = keys[0, 0]
        history.append(flat, values[0, 0], torch.tensor([[40]]), pig.extras(flat, state, mean[0].expand(40, -1)))
        read = pig.read(query, history, state, 1.0)
        logits = query[0, 0, :, 0] @ (read.keys[0, 0] - mean[0]).T + read.bias[0, 0, :, 0]
        sums.append(logits.exp().double().sum(-1))
    wanted = (query[0, 0, :, 0] @ (keys[0, 0] - mean[0]).T).exp().double().sum(-1)
    found = torch.stack(sums)
    assert torch.all((found.mean(0) - wanted).abs() < 4 * found.std(0) / math.sqrt(600))


def test_recycled_attention_reads_what_the_last_full_step_attended_to() -> None:
    history = History(Plain(), Form(4, 4, torch.float32), 2, 1, DEVICE)
    keys = numbers(17, 4)
    history.append(keys, keys, torch.tensor([[10], [7]]), {})
    recycled, state = Recycled(top=3, stride=2, similarity=0.5), Reads()
    query = numbers(2, 1, 2, 1, 4, seed=5)
    assert recycled.read(query, history, state, 1.0) is None
    probs = torch.rand(2, 1, 2, 1, 10, generator=torch.Generator().manual_seed(0))
    recycled.learn(query, probs, history, state)
    read = recycled.read(query, history, state, 1.0)
    for row, count in enumerate((10, 7)):
        mass = probs[row, 0, :, 0, :count].mean(0).numpy()
        wanted = history.dense()[0][row, 0][np.argsort(-mass)[:3].copy()]
        assert torch.equal(read.keys[row, 0], wanted)
    assert recycled.read(query, history, state, 1.0) is None  # the stride is over
    recycled.learn(query, probs, history, state)
    turned = query.clone()
    turned[1] = -turned[1]
    mixed = recycled.read(turned, history, state, 1.0)
    assert mixed.whole
    assert mixed.bias[0].sum() == 3
    assert mixed.bias[1].sum() == 7
    state.held["since"][:] = 1
    recycled.joined(state, torch.tensor([True, False]))
    assert state.held["since"].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("make", "options"),
    [(Recycled, {"top": 0}), (Recycled, {"similarity": 2.0}), (MagicPig, {"bits": 9}), (MagicPig, {"tables": 1})],
)
def test_reader_options_out_of_range_are_refused(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="choose"):
        make(**options)
