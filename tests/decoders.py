"""Tiny random decoders of several families, and what tests of their caches share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as byte_decoder
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import AutoConfig

import small
from isthmus.network import Network

VOCABULARY = 97
POSITIONS = 192

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SHARED,
    "mistral": {**_SHARED, "sliding_window": None},
    "qwen2": _SHARED,
    "qwen3": {**_SHARED, "head_dim": 8},
    "gemma": {**_SHARED, "head_dim": 8},
    "gpt_neox": _SHARED,
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

_MIXED = {**_SHARED, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

#: The same, as it varies within a family, and more families: what the matrix of sites runs through.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {**_SHARED, "tie_word_embeddings": True}),
    "mistral-sliding": ("mistral", {**_SHARED, "sliding_window": 6}),
    "gemma-mqa": ("gemma", {**_SHARED, "head_dim": 8, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", {**_SHARED, "head_dim": 8, "sliding_window": 6}),
    "gemma3": ("gemma3_text", {**_SHARED, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("phi", {**_SHARED, "num_key_value_heads": 4}),
    "phi3": ("phi3", _SHARED),
    "opt": ("opt", {**_SHARED, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": (
        "falcon",
        {**_SHARED, "multi_query": False, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
    ),
    "mixtral": ("mixtral", {**_SHARED, "num_local_experts": 5}),
    "qwen2-moe": ("qwen2_moe", {**_MIXED, "shared_expert_intermediate_size": 40}),
    "qwen3-moe": ("qwen3_moe", {**_MIXED, "head_dim": 8}),
    "olmoe": ("olmoe", {**_MIXED, "intermediate_size": 24}),
    "falcon-mqa": ("falcon", {**_SHARED, "multi_query": True, "ffn_hidden_size": 48}),
}
NAMES = (*FAMILIES, *MORE)
MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe", "olmoe")


def network(name: str, seed: int = 0) -> Network:
    """Return a tiny decoder of a family, or a variant of one, every parameter random, as a language model."""
    family, settings = MORE.get(name) or (name, FAMILIES[name])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval()
    _randomize(model, 0.1)
    return Network(name, model, None, "tokens", False, POSITIONS)


def _randomize(model: Any, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


def write_decoder(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny decoder with a byte-pair tokenizer of made-up sentences and return its folder."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = byte_decoder.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    pieces.train_from_iterator(small.sentences(200), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="<s>")
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64}
    model = decoder(family, seed, vocab_size=len(tokenizer), **{**ids, **changes})
    _randomize(model, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def decoder(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Return a tiny decoder whose attention is not flat."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "c_attn", "query_key_value")) and parameter.ndim == 2:
                parameter.mul_(20.0)
    return model


def tokens(rows: int = 2, length: int = 92, seed: int = 1) -> Tensor:
    """Return random token ids, none of them padding."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stepped(model: Any, ids: Tensor, cache: Any, prompt: int, mask: Tensor | None = None) -> Tensor:
    """Return the logits of the last prompt token and of each later one, fed one at a time."""
    out = []
    for start, stop in [(0, prompt), *((at, at + 1) for at in range(prompt, ids.shape[1]))]:
        own = None if mask is None else mask[:, :stop]
        given = {} if mask is None else {"position_ids": (own.cumsum(1) - 1).clamp_min(0)[:, start:stop]}
        result = model(ids[:, start:stop], attention_mask=own, past_key_values=cache, **given)
        out.append(result.logits[:, -1])
    return torch.stack(out, 1)


def full_cache(model: Any) -> Any:
    """Return transformers' own cache."""
    return DynamicCache(config=model.config)
