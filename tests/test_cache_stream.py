"""A cache as a file: what is decoded is what was quantized, damage is refused, levels follow the bandwidth."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from decoders import decoder, tokens
from isthmus.bottlenecks.cache.stream import file as files
from isthmus.bottlenecks.cache.stream.coding import GROUP, LEVELS, decode_matrix, dequantized, encode_matrix, quantized
from isthmus.bottlenecks.cache.stream.sending import TEXT, best_level, send
from isthmus.errors import BadArtifact, BadInput
from isthmus.storage.coded import scale_of


@pytest.fixture(scope="module")
def model() -> Any:
    return decoder()


@pytest.fixture(scope="module")
def prompt(model: Any) -> files.Prompt:
    return files.prompt_of(model, tokens(1, 150)[0].tolist())


def walk(channels: int, length: int, seed: int = 0) -> Any:
    """Numbers whose neighbours are alike."""
    steps = np.random.default_rng(seed).normal(size=(channels, length)).astype(np.float32)
    return (0.2 * steps.cumsum(1) + steps[:, :1]).astype(np.float32)


@pytest.mark.parametrize("length", [1, 2, GROUP, GROUP + 1, 37])
def test_what_is_decoded_is_what_was_quantized(length: int) -> None:
    numbers = walk(12, length)
    numbers[3] = 0.0
    anchors, differences = quantized(numbers, 0.5)
    data = b"xx" + encode_matrix(numbers, 0.5) + b"yy"
    found, end = decode_matrix(data, 2, len(data) - 2, 12, length)
    assert end == len(data) - 2
    assert np.array_equal(found, dequantized(anchors, differences, length))
    for channel in range(12):
        base = None
        for at in range(length):
            if at % GROUP == 0:
                step = scale_of(anchors.scales[0])[channel, 0]
                base = np.float32(np.rint(numbers[channel, at] / step)) * step
                assert found[channel, at] == base
            else:
                assert differences is not None
                step = scale_of(differences.scales[0])[channel, 0]
                apart = np.float32(np.rint((numbers[channel, at] - base) / step)) * step
                assert found[channel, at] == base + apart
                assert abs(found[channel, at] - numbers[channel, at]) <= step * 0.5001


def test_differences_take_fewer_bytes_than_the_numbers() -> None:
    numbers = walk(32, 200)
    anchored = len(encode_matrix(numbers, 0.3))
    step = float(np.sqrt(np.square(quantized(numbers, 1.0)[1].integers).mean()))
    assert step == pytest.approx(1.0, rel=0.1)
    # At the same step, tokens in any order have nothing to be alike to.
    shuffled = numbers[:, np.random.default_rng(1).permutation(200)]
    own = quantized(numbers, 0.3)[1].scales[0]
    other = quantized(shuffled, 0.3)[1].scales[0]
    coarser = 0.3 * float(np.median(scale_of(own) / scale_of(other)))
    assert anchored < 0.8 * len(encode_matrix(shuffled, coarser))


def test_levels_trade_bytes_for_error(model: Any, prompt: files.Prompt) -> None:
    sizes, errors = [], []
    for level in range(len(LEVELS)):
        data = files.to_bytes(model, prompt, level)
        found = files.from_bytes(model, data)
        assert found.ids == prompt.ids
        sizes.append(len(data))
        errors.append(sum(float(np.square(a - b).mean()) for a, b in zip(found.keys, prompt.keys, strict=True)))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert LEVELS[3].step(0, 6) < LEVELS[3].step(5, 6)


def test_a_loaded_cache_serves_as_the_prompts_own(model: Any, prompt: files.Prompt) -> None:
    ids = torch.tensor([list(prompt.ids)])
    short = files.prompt_of(model, prompt.ids[:-1])
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, past_key_values=files.cache_of(model, short), **options), plain)
    loaded = files.from_bytes(model, files.to_bytes(model, short, 0, chunk=64))
    with torch.no_grad():
        logits = [model(ids[:, -1:], past_key_values=files.cache_of(model, one)).logits for one in (short, loaded)]
    assert float((logits[0] - logits[1]).square().mean().sqrt()) < 0.05 * float(logits[0].std())


def test_chunks_may_have_levels_of_their_own(model: Any, prompt: files.Prompt) -> None:
    chunks = files.encode_chunks(prompt, 64)
    assert len(chunks) == 3
    data = files.to_bytes(model, prompt, [0, 3, 1], chunk=64)
    header = files.read_header(data)
    assert header.levels == (0, 3, 1)
    assert header.bytes == (len(chunks[0][0]), len(chunks[1][3]), len(chunks[2][1]))
    with pytest.raises(BadInput, match="for 3 chunks"):
        files.to_bytes(model, prompt, [0, 9, 1], chunk=64)


def test_damage_is_refused(model: Any, prompt: files.Prompt) -> None:
    data = files.to_bytes(model, prompt, 2, chunk=64)
    random = np.random.default_rng(0)
    for at in {0, 4, 5, 30, len(data) - 1, *random.integers(0, len(data), 40).tolist()}:
        changed = bytearray(data)
        changed[at] ^= 1 << int(random.integers(8))
        with pytest.raises(BadArtifact):
            files.from_bytes(model, bytes(changed))
    for length in (0, 3, 9, 60, len(data) // 2, len(data) - 1):
        with pytest.raises(BadArtifact):
            files.from_bytes(model, data[:length])
    with pytest.raises(BadArtifact):
        files.from_bytes(model, data + b"more")


def rewritten(data: bytes, **changes: Any) -> bytes:
    """Return a file whose header says other things, with a checksum that is right."""
    size = struct.unpack_from("<I", data, 5)[0]
    told = json.loads(data[9 : 9 + size]) | changes
    header = json.dumps(told).encode()
    head = struct.pack("<4sBI", b"ISKV", 1, len(header)) + header
    return head + struct.pack("<I", zlib.crc32(head)) + data[9 + size + 4 :]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "0" * 64}, "another network"),
        ({"shapes": [[2, 8, 8]]}, "1 layers where the network has 2"),
        ({"shapes": [[2, 8, 8], [2, 8, 1 << 40]]}, "where the network makes"),
        ({"ids": [3] * 200}, "chunks do not hold its tokens"),
        ({"chunk": 0}, "chunks do not hold its tokens"),
        ({"bytes": [1, 2, 3]}, "are announced"),
        ({"ids": "abc"}, "cannot be read"),
    ],
)
def test_headers_that_lie_are_refused(changes: dict[str, Any], message: str, model: Any, prompt: files.Prompt) -> None:
    data = files.to_bytes(model, prompt, 2, chunk=64)
    assert files.from_bytes(model, rewritten(data)).ids == prompt.ids
    with pytest.raises(BadArtifact, match=message):
        files.from_bytes(model, rewritten(data, **changes))


def test_prompts_that_cannot_be_saved_are_refused(model: Any) -> None:
    with pytest.raises(BadInput, match="a prompt of 0 tokens"):
        files.prompt_of(model, [])
    with pytest.raises(BadInput, match="1 to 192 fit"):
        files.prompt_of(model, [3] * 193)
    half = decoder(
        "qwen2", use_sliding_window=True, sliding_window=16, layer_types=["full_attention", "sliding_attention"]
    )
    with pytest.raises(BadInput, match="without full attention"):
        files.prompt_of(half, [3, 4])


SIZES = [[100, 50, 25], [100, 50, 25], [100, 50, 25], [100, 50, 25]]


def test_the_level_is_the_finest_that_arrives_in_time() -> None:
    assert best_level(SIZES, 100.0, 4.0) == 0
    assert best_level(SIZES, 100.0, 3.9) == 1
    assert best_level(SIZES, 100.0, 0.5) == 2
    assert best_level(SIZES, 100.0, 0.5, [0.3] * 4) == 2
    assert best_level(SIZES, 100.0, 0.5, [0.2] * 4) == TEXT


def test_levels_follow_the_bandwidth() -> None:
    def dropping(now: float) -> float:
        return 100.0 if now < 1.0 else 40.0

    sent = send(SIZES, dropping, deadline=4.0, expected=100.0)
    assert sent.levels == (0, 0, 2, 2)
    assert sent.seconds == pytest.approx(1 + 100 / 40 + 25 / 40 + 25 / 40)
    late = send(SIZES, dropping, deadline=4.0, expected=100.0, fixed=0)
    assert sent.seconds < late.seconds == pytest.approx(8.5)
    with pytest.raises(BadInput, match="all are to be above 0"):
        send([], dropping, deadline=1.0, expected=1.0)
    with pytest.raises(BadInput, match="a bandwidth of"):
        send(SIZES, lambda now: 0.0, deadline=1.0, expected=1.0)
    texts = send(SIZES, dropping, deadline=0.1, expected=100.0, reading=[0.01] * 4)
    assert texts.levels == (TEXT,) * 4
    assert texts.bytes == 0
