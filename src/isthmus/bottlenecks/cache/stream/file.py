"""The file of a prompt's cache: a checked header, then chunks of tokens that are read one after another.

A file is: ``ISKV``; version (1 byte); the length of the header (4 bytes); the header, JSON; its CRC-32; the chunks. The
header gives the network's fingerprint, its shapes, the prompt's token ids, and for each chunk its tokens, its level and
its bytes. A reader compares all of that with its own network before it allocates anything.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.bottlenecks.cache.cache import layers_of
from isthmus.bottlenecks.cache.stream.coding import LEVELS, Floats, decode_matrix, encode_matrix
from isthmus.errors import BadArtifact, BadInput
from isthmus.network import Network
from isthmus.storage.fingerprint import fingerprint

MAGIC, VERSION = b"ISKV", 1
CHUNK = 256
"""Tokens of a chunk."""
_LONGEST_HEADER = 1 << 24
_HEAD = struct.Struct("<4sBI")


@dataclass(frozen=True)
class Prompt:
    """The cache of a prompt, as numbers.

    Parameters
    ----------
    ids : tuple of int
        The tokens that it holds.
    keys, values : list of ndarray of float32, shape ``(H, T, D)``
        One a layer.
    """

    ids: tuple[int, ...]
    keys: list[Floats]
    values: list[Floats]


def prompt_of(model: Any, ids: Sequence[int]) -> Prompt:
    """Read a prompt with a network and return its cache.

    Raises
    ------
    BadInput
        If there are no tokens, more than positions, or layers of another kind than full attention.
    """
    from transformers import DynamicCache, DynamicLayer

    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not 1 <= len(ids) <= (positions or len(ids)):
        raise BadInput(f"cache: a prompt of {len(ids)} tokens where 1 to {positions} fit; shorten the text")
    if not all(type(layer) is DynamicLayer for layer in layers_of(model)):
        raise BadInput(f"cache: {type(model).__name__} has layers without full attention; its cache is not saved")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([list(ids)]), past_key_values=cache)
    keys, values = ([_numbers(getattr(layer, name)) for layer in cache.layers] for name in ("keys", "values"))
    return Prompt(tuple(int(one) for one in ids), keys, values)


def _numbers(tensor: Tensor) -> Floats:
    if not bool(torch.isfinite(tensor).all()):
        raise BadInput("cache: keys or values are not finite; check the network and its precision")
    return np.ascontiguousarray(tensor[0].float().numpy())


def encode_chunks(prompt: Prompt, chunk: int = CHUNK) -> list[list[bytes]]:
    """Return every chunk at every level, ``[chunk][level]``."""
    starts = range(0, len(prompt.ids), chunk)
    return [[encode_chunk(prompt, start, start + chunk, level) for level in range(len(LEVELS))] for start in starts]


def encode_chunk(prompt: Prompt, start: int, stop: int, level: int) -> bytes:
    """Return the tokens from ``start`` to ``stop`` at a level."""
    out = bytearray()
    for layer, both in enumerate(zip(prompt.keys, prompt.values, strict=True)):
        for numbers in both:
            rows = numbers[:, start:stop].transpose(0, 2, 1).reshape(-1, min(stop, numbers.shape[1]) - start)
            out += encode_matrix(np.ascontiguousarray(rows), LEVELS[level].step(layer, len(prompt.keys)))
    return bytes(out)


def to_bytes(model: Any, prompt: Prompt, levels: Sequence[int] | int, chunk: int = CHUNK) -> bytes:
    """Return the file of a prompt's cache.

    Parameters
    ----------
    levels : int or sequence of int
        Of all chunks, or one each: places in `LEVELS`.

    Raises
    ------
    BadInput
        If a level is not known, or there is not one for each chunk.
    """
    starts = range(0, len(prompt.ids), chunk)
    chosen = [levels] * len(starts) if isinstance(levels, int) else list(levels)
    if len(chosen) != len(starts) or not all(0 <= one < len(LEVELS) for one in chosen):
        raise BadInput(f"cache: levels {chosen} for {len(starts)} chunks; give 0 to {len(LEVELS) - 1} for each")
    bodies = [encode_chunk(prompt, at, at + chunk, level) for at, level in zip(starts, chosen, strict=True)]
    header = json.dumps(
        {
            "network": fingerprint(Network("", model, None)),
            "shapes": [[*k.shape[::2], v.shape[2]] for k, v in zip(prompt.keys, prompt.values, strict=True)],
            "ids": list(prompt.ids),
            "chunk": chunk,
            "levels": chosen,
            "bytes": [len(body) for body in bodies],
        },
        separators=(",", ":"),
    ).encode()
    head = _HEAD.pack(MAGIC, VERSION, len(header)) + header
    return head + struct.pack("<I", zlib.crc32(head)) + b"".join(bodies)


@dataclass(frozen=True)
class Header:
    """What a file says of itself, checked: shapes ``(H, key D, value D)`` by layer, tokens, chunks, and its end."""

    network: str
    shapes: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]
    chunk: int
    levels: tuple[int, ...]
    bytes: tuple[int, ...]
    start: int


def read_header(data: bytes) -> Header:
    """Read and check the header of a file.

    Raises
    ------
    BadArtifact
        If it is no file of a cache, truncated, changed, or of a later version.
    """
    if len(data) < _HEAD.size + 4 or data[:4] != MAGIC:
        raise BadArtifact("cache file: it is none, or cut short; save the cache again")
    _, version, size = _HEAD.unpack_from(data)
    if version > VERSION:
        raise BadArtifact(f"cache file: written by a newer isthmus (version {version}); upgrade isthmus")
    end = _HEAD.size + size
    if version < 1 or size > _LONGEST_HEADER or len(data) < end + 4:
        raise _damaged(f"a header of {size} bytes in a file of {len(data)}")
    if zlib.crc32(data[:end]) != struct.unpack_from("<I", data, end)[0]:
        raise _damaged("the header's checksum does not match")
    try:
        told = json.loads(data[_HEAD.size : end])
        header = Header(
            network=str(told["network"]),
            shapes=tuple((int(h), int(k), int(v)) for h, k, v in told["shapes"]),
            ids=tuple(int(one) for one in told["ids"]),
            chunk=int(told["chunk"]),
            levels=tuple(int(one) for one in told["levels"]),
            bytes=tuple(int(one) for one in told["bytes"]),
            start=end + 4,
        )
    except (ValueError, KeyError, TypeError):
        raise _damaged("its header cannot be read") from None
    chunks = -(-len(header.ids) // header.chunk) if header.chunk > 0 else -1
    if not header.ids or len(header.levels) != chunks or len(header.bytes) != chunks or min(header.bytes) < 0:
        raise _damaged("its chunks do not hold its tokens")
    if len(data) != header.start + sum(header.bytes):
        raise _damaged(f"{len(data) - header.start} bytes of chunks where {sum(header.bytes)} are announced")
    return header


def from_bytes(model: Any, data: bytes) -> Prompt:
    """Return the prompt that a file holds.

    Parameters
    ----------
    model : PreTrainedModel
        The network that made it.

    Raises
    ------
    BadArtifact
        If it is damaged, or of another network.
    """
    header = read_header(data)
    if header.network != fingerprint(Network("", model, None)):
        raise BadArtifact("cache file: made by another network; open the one that made it, or save the cache again")
    if len(header.shapes) != len(layers_of(model)):
        raise _damaged(f"{len(header.shapes)} layers where the network has {len(layers_of(model))}")
    # Whose shapes the file claims the network itself must make.
    for index, (shape, wanted) in enumerate(zip(header.shapes, _shapes(model), strict=True)):
        if shape != wanted:
            raise _damaged(f"layer {index} of shape {list(shape)} where the network makes {list(wanted)}")
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and len(header.ids) > positions:
        raise _damaged(f"{len(header.ids)} tokens for {positions} positions")
    keys: list[list[Floats]] = [[] for _ in header.shapes]
    values: list[list[Floats]] = [[] for _ in header.shapes]
    at = header.start
    for index, size in enumerate(header.bytes):
        tokens = min(header.chunk, len(header.ids) - index * header.chunk)
        end = at + size
        for layer, (heads, key_dim, value_dim) in enumerate(header.shapes):
            for out, dim in ((keys, key_dim), (values, value_dim)):
                rows, at = decode_matrix(data, at, end, heads * dim, tokens)
                out[layer].append(rows.reshape(heads, dim, tokens).transpose(0, 2, 1))
        if at != end:
            raise _damaged(f"{end - at} bytes of chunk {index} are left over")
    return Prompt(header.ids, [np.concatenate(one, 1) for one in keys], [np.concatenate(one, 1) for one in values])


def cache_of(model: Any, prompt: Prompt) -> Any:
    """Return a transformers cache that holds a prompt, for ``generate(..., past_key_values=...)``."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(zip(prompt.keys, prompt.values, strict=True)):
        cache.update(*(torch.from_numpy(one).to(model.dtype)[None] for one in (keys, values)), layer)
    return cache


@torch.no_grad()
def _shapes(model: Any) -> list[tuple[int, int, int]]:
    """Return heads and channels of the keys and values that each layer makes, from a token."""
    made = prompt_of(model, [0])
    return [(k.shape[0], k.shape[2], v.shape[2]) for k, v in zip(made.keys, made.values, strict=True)]


def _damaged(reason: str) -> BadArtifact:
    return BadArtifact(f"cache file: truncated or damaged ({reason}); save the cache again")
