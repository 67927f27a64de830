"""Cramming: texts that come out of vectors whole, by decoding that shares nothing with the search."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from isthmus.errors import BadInput
from isthmus.information.cramming import Recipe, _longest, capacity, cram

QUICK = Recipe(steps=150)


def random_model() -> LlamaForCausalLM:
    """Return a small model whose weights are large enough for its past to matter."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=40, initializer_range=0.1,
        )
    )  # fmt: skip


@cache
def counting_model() -> LlamaForCausalLM:
    """Return a small model that has learnt to count: after a token comes the next one, mostly."""
    model = random_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        ids = (torch.randint(0, 24, (32, 1)) + torch.arange(10)) % 24
        ids = torch.where(torch.rand(ids.shape) < 0.2, torch.randint(0, 24, ids.shape), ids)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def decoded(model: nn.Module, vectors: torch.Tensor, count: int) -> list[int]:
    """Return what greedy decoding writes after the vectors, a token at a time."""
    embed = model.get_input_embeddings()  # type: ignore[operator]
    states, found = vectors, []
    with torch.no_grad():
        for _ in range(count):
            found.append(int(model(inputs_embeds=states[None]).logits[0, -1].argmax()))
            states = torch.cat([states, embed(torch.tensor(found[-1:]))])
    return found


def random_text(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 24, (length,), generator=torch.Generator().manual_seed(seed))


def test_a_text_comes_out_whole_and_what_is_held_is_the_cross_entropy_saved() -> None:
    model = random_model()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    text = random_text(3, seed=1)
    found = cram(model, text, recipe=Recipe(steps=400), start=0)
    assert found.exact
    model.eval()
    assert decoded(model, found.vectors, 3) == text.tolist()
    given = torch.cat([torch.tensor([0]), text])
    logits = model(input_ids=given[None, :-1]).logits[0]
    alone = float(nn.functional.cross_entropy(logits, text, reduction="sum"))
    assert found.nats_alone == pytest.approx(alone, rel=1e-4)
    assert found.correct_alone == int((logits.argmax(1) == text).sum())
    with torch.no_grad():
        states = torch.cat([found.vectors, model.get_input_embeddings()(text[:-1])])
        held = float(nn.functional.cross_entropy(model(inputs_embeds=states[None]).logits[0], text, reduction="sum"))
    assert found.nats == pytest.approx(held, rel=1e-4)
    assert found.bits == pytest.approx((alone - held) / math.log(2), rel=1e-4)
    assert found.bits > 3
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_nothing_of_the_model_changes() -> None:
    model = random_model()
    model.zero_grad(set_to_none=True)
    model.train()
    cram(model, random_text(3), recipe=Recipe(steps=5))
    assert model.training
    assert all(one.grad is None for one in model.parameters())


def test_what_the_model_knows_by_itself_costs_little() -> None:
    model = counting_model()
    counting = (torch.arange(10) + 3) % 24
    known, unknown = (cram(model, text, recipe=QUICK) for text in (counting, random_text(10)))
    assert known.nats_alone < unknown.nats_alone
    assert known.steps < unknown.steps
    assert known.correct_alone >= 8


def test_more_vectors_hold_more() -> None:
    model, text = random_model(), random_text(8, seed=1)
    one, two = (capacity(model, text, vectors=count, recipe=Recipe(steps=150)) for count in (1, 4))
    assert one.longest is not None
    assert two.longest is not None
    assert 1 <= one.longest.tokens < two.longest.tokens
    assert [each.tokens for each in one.tried] == sorted({each.tokens for each in one.tried})
    assert decoded(model.eval(), two.longest.vectors, two.longest.tokens) == text[: two.longest.tokens].tolist()


@pytest.mark.parametrize("most", [1, 7, 8, 30])
def test_the_longest_is_found_wherever_it_is(most: int) -> None:
    for border in range(most + 1):
        asked: list[int] = []

        def holds(length: int, border: int = border, asked: list[int] = asked) -> bool:
            asked.append(length)
            return length <= border

        assert _longest(holds, most) == border
        assert len(asked) == len(set(asked))
        assert all(1 <= length <= most for length in asked)


def test_bad_input() -> None:
    model = random_model()
    for call, words in (
        (lambda: cram(model, torch.tensor([24])), "the vocabulary ends at 23"),
        (lambda: cram(model, torch.zeros(2, 2, dtype=torch.long)), "one row"),
        (lambda: cram(model, torch.zeros(2)), "one row"),
        (lambda: cram(model, random_text(3), vectors=0), "0 vectors"),
        (lambda: cram(model, random_text(41)), "has 40 positions"),
        (lambda: cram(model, random_text(3), start=99), "start 99"),
        (lambda: cram(nn.Linear(2, 2), random_text(3)), "no input embeddings"),
        (lambda: capacity(model, torch.zeros(0, dtype=torch.long)), "one row"),
        (lambda: Recipe(steps=0), "1 step or more"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
