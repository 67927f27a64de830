"""Tiny random networks of every family with an anatomy, for the shared test matrix."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import small
from isthmus.network import Network

COMMON = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}
DISTIL = {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48, "vocab_size": 120, "max_position_embeddings": 64}
MODERN = {**COMMON, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1}
ARCHITECTURES: dict[str, tuple[str, str, dict[str, int]]] = {
    "bert": ("Bert", "BertConfig", COMMON),
    "roberta": ("Roberta", "RobertaConfig", COMMON),
    "distilbert": ("DistilBert", "DistilBertConfig", DISTIL),
    "mpnet": ("MPNet", "MPNetConfig", COMMON),
    "electra": ("Electra", "ElectraConfig", {**COMMON, "embedding_size": 16}),
    "modernbert": ("ModernBert", "ModernBertConfig", MODERN),
}
NAMES = [*ARCHITECTURES, *(f"{name}-classifier" for name in ARCHITECTURES)]


def tiny(name: str, seed: int = 0, **settings: int) -> Network:
    """Return a small random network of the named architecture, every parameter random.

    ``settings`` change the config that it is built from.
    """
    family, _, head = name.partition("-")
    prefix, config_name, sizes = ARCHITECTURES[family]
    suffix = "ForSequenceClassification" if head else "Model"
    torch.manual_seed(seed)
    model = getattr(transformers, prefix + suffix)(getattr(transformers, config_name)(**{**sizes, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return Network(name, model, None, "logits" if head else "mean", not head, 64)


def tokens(seed: int = 1, batch: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    """Return random token ids ``(batch, length)`` with a padded tail."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 120, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@cache
def tokenizer_of(family: str) -> Any:
    """Return a small tokenizer of the kind that the family has, its special tokens where the family wants them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if family == "mpnet":
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    elif family == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if family in ("roberta", "modernbert"):
        pieces = Tokenizer(models.BPE())
        pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
        pieces.train_from_iterator(small.sentences(200), trainer)
    else:
        words = small.word_pieces(small.sentences(200), "abcdefghijklmnopqrstuvwxyz0123456789", special, 130)
        pieces = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
        pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
        pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if family == "roberta":
        return transformers.RobertaTokenizer(tokenizer_object=pieces)
    if family == "mpnet":
        return transformers.MPNetTokenizer(tokenizer_object=pieces)
    if family == "modernbert":
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        ids = [(token, pieces.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, **names)
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.BertTokenizer(tokenizer_object=pieces)


def worded(name: str, seed: int = 0) -> Network:
    """Return the small random network of ``tiny`` with a tokenizer, so that it has a vocabulary and reads text."""
    tokenizer = tokenizer_of(name.partition("-")[0])
    ids = {
        f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "cls", "sep", "bos", "eos")
    }
    ids = {key: value for key, value in ids.items() if value is not None}
    length = 62 if name.startswith(("roberta", "mpnet")) else 64  # what is left of the positions, as opening finds it
    return replace(tiny(name, seed, vocab_size=len(tokenizer), **ids), tokenizer=tokenizer, max_length=length)
