"""Attention heads: each figure against loops over the maps, and heads whose job is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import networks
from isthmus.errors import BadInput
from isthmus.information.heads import attention_maps, measure_heads, same_token_pairs, special_tokens


def texts() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    given = networks.tokens(batch=5, length=8)
    special = torch.zeros(5, 8, dtype=torch.bool)
    special[:, 0] = True
    return given, special


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_figures_are_those_of_loops_over_the_maps(family: str) -> None:
    model = networks.tiny(family).model
    given, special = texts()
    pairs = [(0, 3, 1), (1, 2, 6), (4, 1, 2)]
    maps = attention_maps(model, given)
    found = measure_heads(model, given, special=special, pairs=pairs, batch_size=2)
    assert len(found.heads) == sum(one.shape[1] for one in maps)
    mask = given["attention_mask"]
    for head in found.heads:
        rows = maps[head.layer][:, head.head].numpy()
        entropies, distances, marks, owns, befores = [], [], [], [], []
        for text in range(5):
            for place in range(8):
                if not mask[text, place]:
                    continue
                row = rows[text, place]
                assert row.sum() == pytest.approx(1, abs=1e-5)
                entropies.append(scipy.stats.entropy(row))
                distances.append(sum(row[other] * abs(place - other) for other in range(8)))
                marks.append(row[0])
                owns.append(row[place])
                if place:
                    befores.append(row[place - 1])
        for value, expected in (
            (head.entropy, entropies), (head.distance, distances), (head.special, marks), (head.own, owns),
            (head.previous, befores),
        ):  # fmt: skip
            assert value == pytest.approx(np.mean(expected), rel=1e-4, abs=1e-6)
        hits = 0
        for text, place, other in pairs:
            row = rows[text, place].copy()
            row[[0, place]] = -1
            row[mask[text].numpy() == 0] = -1
            hits += int(row.argmax()) == other
        assert head.found == pytest.approx(hits / 3)
    assert (found.pairs, found.by_offset) == (3, pytest.approx(1 / 3))


def test_the_model_is_as_it_was() -> None:
    model = networks.tiny("bert").model
    given, _ = texts()
    model.set_attn_implementation("sdpa")
    model.train()
    before = {name: module.training for name, module in model.named_modules()}
    measure_heads(model, given)
    assert model.config._attn_implementation == "sdpa"
    assert {name: module.training for name, module in model.named_modules()} == before


def test_a_head_that_finds_the_same_token() -> None:
    """Queries and keys are a token's own embedding, without position: after itself a head finds its like."""
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            hidden_size=64, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, vocab_size=30,
            max_position_embeddings=32,
        )
    )  # fmt: skip
    own = model.encoder.layer[0].attention.self
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
        for part in (own.query, own.key):
            part.weight.copy_(3 * torch.eye(64))
            part.bias.zero_()
    ids = torch.randint(3, 30, (10, 20))
    ids[:, 0] = 1
    special = special_tokens(ids, [0, 1, 2])
    assert special.sum() == 10
    pairs = [
        pair for pair in same_token_pairs(ids, special=special) if (ids[pair[0]] == ids[pair[0], pair[1]]).sum() == 2
    ]
    assert len(pairs) > 20
    found = measure_heads(model, {"input_ids": ids}, special=special, pairs=pairs)
    assert found.best is not None
    assert found.best.found == 1.0
    assert (found.by_offset or 1) < 0.5


def test_a_causal_head_looks_back_only() -> None:
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=30, n_positions=16))
    ids = torch.randint(0, 30, (3, 9))
    maps = attention_maps(model, {"input_ids": ids})[0]
    assert maps.triu(1).abs().max() == 0
    found = measure_heads(model, {"input_ids": ids})
    assert len(found.heads) == 2
    assert found.best is None
    assert all(0 <= head.entropy <= math.log(9) for head in found.heads)


def test_pairs_of_the_same_token() -> None:
    ids = torch.tensor([[5, 6, 5, 5, 9, 9], [7, 7, 7, 0, 0, 0]])
    mask = (ids != 0).long()
    assert same_token_pairs(ids, mask) == ((0, 2, 0), (0, 3, 2), (0, 5, 4), (1, 1, 0), (1, 2, 1))
    assert same_token_pairs(ids, mask, special_tokens(ids, [5, 7])) == ((0, 5, 4),)


def test_bad_input() -> None:
    model = networks.tiny("bert").model
    given, special = texts()
    short = given["input_ids"]
    for call, words in (
        (lambda: measure_heads(model, given, pairs=[(0, 1, 8)]), "pair .0, 1, 8."),
        (lambda: measure_heads(model, given, pairs=[(9, 1, 2)]), "give a text"),
        (lambda: measure_heads(model, given, pairs=[(0, 1, 1)]), "unlike tokens"),
        (lambda: measure_heads(model, given, special=special, pairs=[(0, 1, 0)]), "nor special"),
        (lambda: measure_heads(model, given, pairs=[(4, 1, 7)]), "neither padding"),
        (lambda: measure_heads(model, given, special=special[:, :3]), "one for each token"),
        (lambda: measure_heads(model, {**given, "attention_mask": torch.zeros_like(short)}), "all tokens are padding"),
        (lambda: measure_heads(nn.Linear(2, 2), given), "says nothing of its attention"),
        (lambda: measure_heads(model, {"pixel_values": torch.zeros(2, 3, 4, 4)}), "none says which tokens"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
