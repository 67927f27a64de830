"""What lm_docs begins with: heads that look back, and heads that find where the same tokens stood before.

A network learns to recall once it has both, and in the few million tokens that a small one is trained on neither comes
about by itself. They are planted, with room for training to improve on them:

- in the first layer a head attends to the token before, one to the seven before that, and one to the last seven. A
  rotary position turns each pair of channels by an angle, so that a constant query, turned back, and a constant key
  agree most at one distance; pairs that turn fast tell it from its neighbours. What is found is written, in short
  random codes, to parts of the stream of their own;
- in the second layer heads compare codes, in pairs of channels that hardly turn: a token with the one before a place,
  and the words just read with the words just before that place. What stands there is copied to the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WORD, CODE = 128, 28
"""Entries of the stream that a token's embedding takes, and those of each code."""
_CONTENT = slice(128, 128 + CODE)  # the embedding of words that names are made of, once more
_BEFORE, _LAST, _EARLIER = (slice(160 + CODE * at, 160 + CODE * (at + 1)) for at in range(3))
_FAST, _SHARP, _BROAD = 0.2, 8.0, 1.2
_SLOWEST = 14  # pairs of channels that hardly turn
_MATCH, _WORDS, _COPY = 2.0, 1.7, 1.0


@torch.no_grad()
def plant(model: Any, words: Sequence[int], seed: int = 0) -> None:
    """Give a Llama of two layers or more its first heads.

    Parameters
    ----------
    model : LlamaForCausalLM
        Of width 256, four heads of 64 channels, two to a head of keys, with biases in its attention.
    words : sequence of int
        Tokens that names are made of.
    """
    draw = torch.Generator().manual_seed(seed)
    table = model.model.embed_tokens.weight
    table.zero_()
    table[:, :WORD] = torch.randn(len(table), WORD, generator=draw) * WORD**-0.5
    table[list(words), _CONTENT] = torch.randn(len(words), CODE, generator=draw) * CODE**-0.5
    reading = torch.linalg.qr(torch.randn(WORD, CODE, generator=draw))[0].T * (WORD / CODE) ** 0.5
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    _look_back(model, first, reading)
    _find_again(model, second, reading)


def _look_back(model: Any, attention: Any, reading: Tensor) -> None:
    size = attention.head_dim
    angles = model.model.rotary_emb.inv_freq
    attention.o_proj.weight.zero_()
    plans = ((0, 1.0, _SHARP, _BEFORE), (1, 4.0, _BROAD, _EARLIER), (2, 3.0, _BROAD, _LAST))
    for group in (0, 1):
        rows = slice(group * size, (group + 1) * size)
        attention.k_proj.weight[rows] = 0
        attention.k_proj.bias[rows] = torch.cat([_constant(angles, _FAST), torch.zeros(size // 2)])
        attention.v_proj.weight[rows] = 0
        attention.v_proj.weight[group * size : group * size + CODE, :WORD] = reading
        attention.v_proj.weight[group * size + CODE : group * size + 2 * CODE, _CONTENT] = torch.eye(CODE)
    for head, distance, sharp, target in plans:
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = 0
        constant = _constant(angles, _FAST) * sharp * size**0.5
        turned = torch.cat([constant * torch.cos(distance * angles), -constant * torch.sin(distance * angles)])
        attention.q_proj.bias[rows] = turned
        # The token before in the code of its embedding, words in their own, as a sum over the seven.
        start = head * size + (0 if target is _BEFORE else CODE)
        gain = 1 / 16 if target is _BEFORE else 7 / 16
        attention.o_proj.weight[target, start : start + CODE] = gain * torch.eye(CODE)


def _constant(angles: Tensor, least: float) -> Tensor:
    return torch.where(angles > least, 1.0, 0.0)


def _find_again(model: Any, attention: Any, reading: Tensor) -> None:
    size = attention.head_dim
    half = size // 2
    slow = torch.arange(half - _SLOWEST, half)
    attention.o_proj.weight.zero_()
    for group in (0, 1):
        head = group * attention.num_key_value_groups
        query, key = head * size, group * size
        attention.q_proj.weight[query : query + size] = 0
        attention.k_proj.weight[key : key + size] = 0
        part = slice(group * _SLOWEST, (group + 1) * _SLOWEST)
        # One channel of each pair compares tokens, the other words; the two heads compare other parts of the codes.
        attention.q_proj.weight[query + slow, :WORD] = _MATCH * reading[part]
        attention.k_proj.weight[key + slow, _BEFORE] = _MATCH * torch.eye(CODE)[part]
        attention.q_proj.weight[query + half + slow, _LAST] = _WORDS * torch.eye(CODE)[part]
        attention.k_proj.weight[key + half + slow, _EARLIER] = _WORDS * torch.eye(CODE)[part]
        columns = slice(group * size, (group + 1) * size)
        attention.v_proj.weight[key : key + size] = 0
        attention.v_proj.weight[key : key + size, columns] = torch.eye(size)
        attention.o_proj.weight[columns, query : query + size] = _COPY * torch.eye(size)
