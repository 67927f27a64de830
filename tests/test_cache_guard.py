"""The guard: a network with planted outlier channels, which plain quantizers of caches break without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decoders import decoder, full_cache, tokens
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.cache import NarrowCache
from isthmus.bottlenecks.cache.codes.plain import Plain
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.guard import finer, guarded, outlying_channels
from isthmus.bottlenecks.cache.measuring import lost, targets
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput

SMALL = {"sinks": 4, "recent": 8, "block": 16}
PROMPT = 80


def planted(size: float = 300.0) -> Any:
    """A decoder whose keys have two huge channels a head, and queries as much smaller ones: the same function."""
    model = decoder(hidden_size=64, head_dim=16)
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            for projection, factor in ((attention.k_proj, size), (attention.q_proj, 1 / size)):
                rows = projection.weight.view(-1, 16, 64)
                # The two halves of a rotated pair, so that the rotation commutes with the scaling.
                rows[:, [1, 9]] *= factor
    return model


@pytest.fixture(scope="module")
def outlier() -> Any:
    return planted()


def by_token(bits: int = 6) -> CacheSetting:
    return CacheSetting(codes=(Uniform(bits, bits, key_axis="token"),), **SMALL)


def right(model: Any, setting: CacheSetting, ids: torch.Tensor) -> int:
    """Return how many answers of 120 are those of the full cache."""
    with torch.no_grad():
        answers = []
        for cache in (full_cache(model), NarrowCache(model, setting)):
            model(ids[:, :PROMPT], past_key_values=cache)
            answers.append(
                torch.cat(
                    [model(part, past_key_values=cache).logits.argmax(-1) for part in ids[:, PROMPT:].split(1, 1)], 1
                )
            )
    return int((answers[0] == answers[1]).sum())


def test_the_planted_network_is_the_same_function(outlier: Any) -> None:
    ids = tokens(2, 60)
    with torch.no_grad():
        assert torch.allclose(outlier(ids).logits, planted(1.0)(ids).logits, atol=1e-5, rtol=0)
    assert outlying_channels(outlier, ids) == [4, 4]
    assert outlying_channels(planted(1.0), ids) == [0, 0]


def test_bits_by_token_break_it_and_the_guard_says_so_and_mends_it(outlier: Any) -> None:
    ids = tokens(6, PROMPT + 20, seed=11)
    plain = planted(1.0)
    fine, broken = right(plain, by_token(), ids), right(outlier, by_token(), ids)
    assert fine >= 100
    assert broken <= fine - 30
    seen = guarded(outlier, [by_token()] * 2, [tokens(4, PROMPT + 20, seed=3)], prompt=PROMPT, most_nats=1e-3)
    assert seen.before.nats > 1e-3 >= seen.after.nats
    assert any("outlying channels" in message and "by channel" in message for message in seen.messages)
    mended = NarrowCache(outlier, seen.settings)
    assert mended.narrowed[0].setting == seen.settings[0]
    assert right(outlier, seen.settings[0], ids) >= fine - 5


def test_what_loses_little_goes_through_unchanged() -> None:
    asked = [by_token(8)] * 2
    seen = guarded(planted(1.0), asked, [tokens(2, PROMPT + 10)], prompt=PROMPT, most_nats=1e-3)
    assert seen.settings == tuple(asked)
    assert seen.messages == ()
    assert seen.before == seen.after


def test_what_cannot_be_mended_is_refused(outlier: Any) -> None:
    batches = [tokens(2, PROMPT + 10)]
    with pytest.raises(BadInput, match=r"refused, it loses .* outlying channels in its keys\); let the guard"):
        guarded(outlier, [by_token(2)] * 2, batches, prompt=PROMPT, most_nats=1e-3, adapt=False)
    evicting = CacheSetting(registry.selector("window"), entries=30, **SMALL)
    with pytest.raises(BadInput, match="more entries"):
        guarded(outlier, [evicting] * 2, batches, prompt=PROMPT, most_nats=1e-9)
    with pytest.raises(BadInput, match="above 0"):
        guarded(outlier, [by_token()] * 2, batches, prompt=PROMPT, most_nats=0.0)
    with pytest.raises(BadInput, match="no texts"):
        guarded(outlier, [by_token()] * 2, [], prompt=PROMPT, most_nats=0.1)
    with pytest.raises(BadInput, match="with tokens left"):
        guarded(outlier, [by_token()] * 2, [tokens(1, PROMPT)], prompt=PROMPT, most_nats=0.1)


def test_codes_become_finer_step_by_step() -> None:
    steps, setting = [], by_token(2)
    while (better := finer(setting)) is not None:
        setting = better
        steps.append(setting.codes[0])
    assert [(one.key_axis, one.key_bits) for one in steps[:-1]] == [("channel", bits) for bits in (2, 3, 4, 8)]
    assert steps[-1] == Plain()


def test_loss_is_the_divergence_from_the_full_cache(outlier: Any) -> None:
    ids = tokens(2, PROMPT + 12, seed=9)
    held = targets(outlier, [ids], prompt=PROMPT, chunk=1)
    found = lost(outlier, by_token(3), [ids], held, prompt=PROMPT, chunk=1)
    cache, logits = NarrowCache(outlier, by_token(3)), []
    with torch.no_grad():
        whole = outlier(ids).logits[:, PROMPT - 1 : -1]
        for part in (ids[:, :PROMPT], *ids[:, PROMPT:-1].split(1, 1)):
            logits.append(outlier(part, past_key_values=cache).logits[:, -1:])
    nats = torch.nn.functional.kl_div(
        torch.cat(logits, 1).log_softmax(-1).flatten(0, 1),
        whole.log_softmax(-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
    assert found.nats == pytest.approx(float(nats), rel=1e-3)
    assert found.tokens == 24
    assert found.bytes == cache.allocated_bytes()
    assert found.full_bytes == 2 * 2 * 2 * (PROMPT + 11) * 32 * 4
    none = lost(outlier, CacheSetting(**SMALL), [ids], held, prompt=PROMPT, chunk=1)
    assert none.nats == pytest.approx(0, abs=1e-6)
    assert none.agreement == 1.0
