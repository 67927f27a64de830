"""Every method of the cache, through one matrix: equal with nothing left out, real bytes, batches, beams, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import decoders
from decoders import FAMILIES, decoder, full_cache, stepped, tokens
from isthmus.bottlenecks.cache import registry
from isthmus.bottlenecks.cache.cache import NarrowCache, attach, detach
from isthmus.bottlenecks.cache.codes.coupled import learnt
from isthmus.bottlenecks.cache.codes.uniform import Uniform
from isthmus.bottlenecks.cache.predicting import full_bytes, predicted_bytes
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput

ENTRIES = 52
SMALL = {"sinks": 4, "recent": 8, "block": 8}
BITS = {"tokens": 8}
SELECTING = [name for name in registry.SELECTORS if name != "everything"]
READING = list(registry.READERS)


def codes_for(name: str, low: int = 2) -> tuple[Any, ...]:
    if name == "zipvl":
        return Uniform(8, 8, **BITS), Uniform(low, low, **BITS)
    return (registry.code("plain"),)


def selecting(name: str, entries: int | None) -> CacheSetting:
    return CacheSetting(registry.selector(name), codes_for(name), entries=entries, **SMALL)


def reading(name: str, **options: Any) -> CacheSetting:
    return CacheSetting(reader=registry.reader(name, **options), **SMALL)


def coupled(model: Any) -> CacheSetting:
    cache = full_cache(model)
    with torch.no_grad():
        model(tokens(4, 90, seed=5), past_key_values=cache)
    return CacheSetting(codes=(learnt(cache.layers[0].keys, cache.layers[0].values, channels=4, bits=4),), **SMALL)


def every(model: Any) -> dict[str, CacheSetting]:
    """Return a tight setting of every method."""
    made = {name: selecting(name, ENTRIES) for name in SELECTING}
    made |= {name: reading(name) for name in READING}
    made["uniform"] = CacheSetting(codes=(Uniform(3, 3, **BITS),), **SMALL)
    made["uniform-evicting"] = CacheSetting(
        registry.selector("h2o"), (Uniform(4, 4, **BITS),), entries=ENTRIES, **SMALL
    )
    made["coupled"] = coupled(model)
    return made


NAMES = [*SELECTING, *READING, "uniform", "uniform-evicting", "coupled"]


@pytest.fixture(scope="module")
def model() -> Any:
    return decoder()


@pytest.fixture(scope="module")
def settings(model: Any) -> dict[str, CacheSetting]:
    return every(model)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_entries_give_the_logits_of_the_full_cache(family: str) -> None:
    model = decoder(family)
    ids = tokens()
    whole = stepped(model, ids, full_cache(model), 80)
    names = [name for name in SELECTING if name != "zipvl"] if family == "llama" else ["snapkv", "h2o"]
    for name in ["everything", *names]:
        cache = NarrowCache(model, selecting(name, None if name == "everything" else 400))
        assert torch.allclose(stepped(model, ids, cache, 80), whole, atol=1e-5, rtol=0), name
        assert min(int(layer.tiers[0].counts.min()) for layer in cache.narrowed) > 0
    recycled = NarrowCache(model, reading("recycled-attention", top=400))
    assert torch.allclose(stepped(model, ids, recycled, 80), whole, atol=1e-5, rtol=0)


def test_chunked_prompts_give_the_logits_of_the_full_cache(model: Any) -> None:
    ids = tokens(length=120)
    with torch.no_grad():
        whole = model(ids).logits
        cache = NarrowCache(model, selecting("h2o", 400))
        parts = [model(part, past_key_values=cache).logits for part in ids.split([50, 1, 37, 32], 1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_layers_with_a_window_stay_transformers_own() -> None:
    model = decoder(
        "qwen2", use_sliding_window=True, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    )
    ids = tokens()
    cache = NarrowCache(model, selecting("h2o", 400))
    assert [layer.is_sliding for layer in cache.layers] == [True, False]
    assert torch.allclose(stepped(model, ids, cache, 80), stepped(model, ids, full_cache(model), 80), atol=1e-5, rtol=0)
    held = 2 * cache.layers[0].keys.untyped_storage().nbytes() + 8  # and the window itself
    assert cache.allocated_bytes() == cache.narrowed[0].allocated_bytes() + held


@pytest.mark.parametrize("name", NAMES)
def test_bytes_predicted_are_bytes_allocated(name: str, model: Any, settings: dict[str, CacheSetting]) -> None:
    setting = settings[name]
    ids = tokens(3, 99)
    cache = NarrowCache(model, setting)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    shape = {"rows": 3, "heads": 2, "key_dim": 8, "value_dim": 8, "item": 4, "length": 99}
    layer = cache.narrowed[0]
    told = tuple(int(history.counts.sum()) for history in layer.tiers)
    assert predicted_bytes(setting, tiers=told, **shape) == layer.allocated_bytes()
    if name not in ("zipvl", "ems-kv"):
        assert predicted_bytes(setting, **shape) == layer.allocated_bytes()
    counted = sum(one.numel() * one.element_size() for one in layer.tensors())
    assert counted == layer.allocated_bytes()
    if name not in READING:
        assert layer.allocated_bytes() < full_bytes(**shape)


@pytest.mark.parametrize("name", [*SELECTING, "uniform-evicting"])
def test_evicted_entries_are_freed(name: str, model: Any, settings: dict[str, CacheSetting]) -> None:
    cache = NarrowCache(model, settings[name])
    stepped(model, tokens(2, 100), cache, 75)
    for layer in cache.narrowed:
        assert int(layer.entries().sum(1).max()) <= ENTRIES * 2
        assert int(layer.entries().sum(1).min()) >= (ENTRIES - 2 * SMALL["block"]) * 2
        for history in layer.tiers:
            assert all(len(part) == int(history.counts.sum()) for part in history.entries.values())
            if history.code.group and history.groups:
                assert int(history.sizes.sum()) == int(history.counts.sum())
                assert int(history.sizes.min()) > 0
                assert len(history.groups["key_grid"]) == int(history.grouped.sum()) == len(history.sizes)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_is_each_row_alone(name: str, model: Any, settings: dict[str, CacheSetting]) -> None:
    lengths, longest = (60, 97, 25), 97
    rows = [tokens(1, length + 10, seed=length)[0] for length in lengths]
    ids = torch.zeros((3, longest + 10), dtype=torch.int64)
    for at, row in enumerate(rows):
        ids[at, -len(row) :] = row
    cache = NarrowCache(model, settings[name])
    together = stepped(model, ids, cache, longest, (ids > 0).long())
    for at, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        own = NarrowCache(model, settings[name])
        alone = stepped(model, row[None], own, length)
        assert torch.allclose(together[at], alone[0], atol=1e-5, rtol=0), (name, length)
        assert cache.narrowed[1].entries()[at].tolist() == own.narrowed[1].entries()[0].tolist()


def test_a_batch_padded_on_the_right_is_each_row_alone(model: Any) -> None:
    setting = selecting("snapkv", ENTRIES)
    short, long = tokens(1, 50, seed=7), tokens(1, 90, seed=8)
    ids = torch.zeros((2, 90), dtype=torch.int64)
    ids[0, :50], ids[1] = short[0], long[0]
    cache, more = NarrowCache(model, setting), tokens(2, 20, seed=9)
    mask = (ids > 0).long()
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        together = model(ids, attention_mask=mask, position_ids=places, past_key_values=cache).logits
        steps = []
        for at in range(20):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], 1)
            where = torch.tensor([[50 + at], [90 + at]])
            own = model(more[:, at : at + 1], attention_mask=mask, position_ids=where, past_key_values=cache)
            steps.append(own.logits[:, -1])
    for row, ids_alone in enumerate((short, long)):
        alone = stepped(
            model, torch.cat([ids_alone, more[row : row + 1]], 1), NarrowCache(model, setting), ids_alone.shape[1]
        )
        assert torch.allclose(together[row, ids_alone.shape[1] - 1], alone[0, 0], atol=1e-5, rtol=0)
        assert torch.allclose(torch.stack(steps, 1)[row], alone[0, 1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rows_can_be_put_in_another_order(name: str, model: Any, settings: dict[str, CacheSetting]) -> None:
    ids, more = tokens(3, 90), tokens(3, 10, seed=4)
    order = torch.tensor([2, 0, 0])
    cache = NarrowCache(model, settings[name])
    stepped(model, ids, cache, 84)
    cache.reorder_cache(order)
    after = _continued(model, more, cache)
    fresh = NarrowCache(model, settings[name])
    stepped(model, ids[order], fresh, 84)
    assert torch.allclose(after, _continued(model, more, fresh), atol=1e-5, rtol=0)
    assert cache.allocated_bytes() == fresh.allocated_bytes()


def _continued(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model(part, past_key_values=cache).logits[:, -1] for part in ids.split(1, 1)], 1)


def test_beam_search_finds_what_it_finds_with_the_full_cache(model: Any) -> None:
    ids = tokens(2, 70)
    options = {"max_new_tokens": 30, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    own = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    cache = NarrowCache(model, selecting("h2o", 400))
    assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options), own)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_run_gives_the_same_tokens(name: str, model: Any, settings: dict[str, CacheSetting]) -> None:
    ids = tokens(2, 80)
    ids[0, :30] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "attention_mask": (ids > 0).long()}
    runs = [model.generate(ids, past_key_values=NarrowCache(model, settings[name]), **options) for _ in range(2)]
    assert torch.equal(runs[0], runs[1])
    assert runs[0].shape[1] > ids.shape[1]


def test_generation_that_is_cut_goes_on_where_it_was(model: Any) -> None:
    ids = tokens(1, 80)
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    setting = selecting("h2o", ENTRIES)
    whole = model.generate(ids, past_key_values=NarrowCache(model, setting), max_new_tokens=30, **options)
    cache = NarrowCache(model, setting)
    part = model.generate(ids, past_key_values=cache, max_new_tokens=12, **options)
    assert torch.equal(model.generate(part, past_key_values=cache, max_new_tokens=18, **options), whole)


@pytest.mark.parametrize("bits", [2, 3])
def test_error_falls_with_bits(bits: int, model: Any) -> None:
    ids = tokens()
    whole = stepped(model, ids, full_cache(model), 80)

    def error(setting: CacheSetting) -> float:
        return float((stepped(model, ids, NarrowCache(model, setting), 80) - whole).square().mean())

    coarse, fine = (error(CacheSetting(codes=(Uniform(b, b, **BITS),), **SMALL)) for b in (bits, bits + 3))
    assert 0 < fine < coarse
    low, high = (error(CacheSetting(registry.selector("zipvl"), codes_for("zipvl", b), **SMALL)) for b in (bits, 8))
    assert 0 < high < low


def test_tokens_can_be_taken_back(model: Any) -> None:
    ids = tokens(1, 90)
    cache = NarrowCache(model, CacheSetting(**SMALL))
    stepped(model, ids[:, :84], cache, 80)
    cache.crop(-4)
    assert cache.get_seq_length() == 80
    assert torch.allclose(
        _continued(model, ids[:, 80:], cache), stepped(model, ids, full_cache(model), 80)[:, 1:], atol=1e-5, rtol=0
    )
    with pytest.raises(BadInput, match="cannot be taken back"):
        cache.crop(-60)
    with pytest.raises(BadInput, match="negative"):
        cache.crop(3)


def test_rows_can_be_repeated_and_selected(model: Any) -> None:
    ids, more = tokens(2, 80), tokens(2, 10, seed=3)
    cache = NarrowCache(model, selecting("h2o", ENTRIES))
    stepped(model, ids, cache, 80)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1, 2]))
    own = NarrowCache(model, selecting("h2o", ENTRIES))
    stepped(model, ids, own, 80)
    assert torch.allclose(_continued(model, more, cache), _continued(model, more, own), atol=1e-5, rtol=0)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.allocated_bytes() == 0


def test_half_precision_is_kept(model: Any) -> None:
    half = decoder().to(torch.bfloat16)
    cache = NarrowCache(half, selecting("h2o", ENTRIES))
    out = stepped(half, tokens(), cache, 80)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()
    assert cache.narrowed[0].tiers[0].entries["keys"].dtype == torch.bfloat16


def test_attention_is_as_it_was_without_a_narrowed_cache(model: Any) -> None:
    other = decoder(seed=3)
    ids = tokens()
    with torch.no_grad():
        before = other(ids).logits
        attach(other)
        attach(other)
        assert torch.equal(other(ids).logits, before)
        detach(other)
    assert other.config._attn_implementation == "sdpa"
    assert not other._forward_pre_hooks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sinks": -1}, "no fewer than"),
        ({"recent": 0}, "no fewer than"),
        ({"entries": 19}, "are fewer than"),
        ({"entries": 400}, "no selector"),
        ({"codes": ()}, "takes 1 codes"),
        ({"codes": (Uniform(tokens=24),)}, "do not fill groups"),
        ({"selector": registry.selector("h2o"), "reader": registry.reader("magicpig")}, "leave out h2o"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        CacheSetting(**{**SMALL, **change})


def test_a_cache_of_another_network_is_refused(model: Any) -> None:
    other, stranger = decoder(seed=4), decoder(num_hidden_layers=3)
    ids = tokens(1, 20)
    attach(other)
    with pytest.raises(BadInput, match="another network"):
        other(ids, past_key_values=NarrowCache(model, CacheSetting()))
    with pytest.raises(BadInput, match="does not attend through isthmus"):
        stranger(ids, past_key_values=NarrowCache(model, CacheSetting()))
    with pytest.raises(BadInput, match="3 settings for a network of 2 layers"):
        NarrowCache(model, [CacheSetting()] * 3)


def test_batches_and_masks_that_do_not_fit_are_refused(model: Any) -> None:
    ids = tokens(2, 40)
    cache = NarrowCache(model, CacheSetting())
    with torch.no_grad():
        model(ids, past_key_values=cache)
        with pytest.raises(BadInput, match="new cache for another batch"):
            model(ids[:1, :1], past_key_values=cache)
        cache = NarrowCache(model, CacheSetting())
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        model(ids, attention_mask=mask, past_key_values=cache)
        with pytest.raises(BadInput, match="padded batch"):
            model(ids[:, :1], past_key_values=cache)
        cache = NarrowCache(model, CacheSetting())
        model(ids, past_key_values=cache)
        hiding = torch.ones((2, 41), dtype=torch.int64)
        hiding[1, 5:9] = 0
        with pytest.raises(BadInput, match="hides tokens"):
            model(ids[:, :1], attention_mask=hiding, past_key_values=cache)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_more_tokens_than_positions_are_refused(family: str) -> None:
    model = decoder(family)
    cache = NarrowCache(model, CacheSetting())
    with torch.no_grad():
        model(tokens(1, decoders.POSITIONS), past_key_values=cache)
        with pytest.raises(BadInput, match="193 tokens with those held, and the network has 192 positions"):
            model(tokens(1, 1), past_key_values=cache)


def test_keys_that_are_not_numbers_are_refused() -> None:
    broken = decoder(seed=6)
    with torch.no_grad():
        next(p for n, p in broken.named_parameters() if "v_proj" in n)[0, 0] = float("nan")
        with pytest.raises(BadInput, match="values of layer 0 are not finite"):
            broken(tokens(1, 90), past_key_values=NarrowCache(broken, CacheSetting(**SMALL)))


def test_settings_are_data(settings: dict[str, CacheSetting]) -> None:
    for name, setting in settings.items():
        if name == "coupled":
            with pytest.raises(BadInput, match="learnt tables"):
                registry.to_data(setting)
        else:
            assert registry.from_data(registry.to_data(setting)) == setting
    with pytest.raises(BadInput, match="did you mean h2o"):
        registry.selector("h20")
    with pytest.raises(BadInput, match="does not take these options"):
        registry.reader("magicpig", tokens=3)
    with pytest.raises(BadInput, match="its keys are to be"):
        registry.from_data({"selector": {"name": "h2o"}})
