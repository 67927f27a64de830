"""A tiny text encoder with a tokenizer, in a folder, and text for it: what a user would have, made at once."""

from __future__ import annotations

from pathlib import Path

SYLLABLES = ("na", "row", "strip", "of", "land", "wa", "ter", "be", "tween", "two", "wide", "bridge", "walk", "er")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return made-up sentences, all different."""
    import random

    chosen = random.Random(seed)
    return [
        " ".join("".join(chosen.choices(SYLLABLES, k=2)) for _ in range(chosen.randint(4, 9))) + f" {number}"
        for number in range(count)
    ]


def write_network(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT of three layers with a WordPiece tokenizer and return its folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = [*"abcdefghijklmnopqrstuvwxyz0123456789.,;-"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(sentences(200), trainer)
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = BertTokenizer(tokenizer_object=backend)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_text(path: Path, count: int = 120) -> Path:
    """Write a file of sentences, one a line, and return it."""
    path.write_text("\n".join(sentences(count)) + "\n", encoding="utf-8")
    return path
