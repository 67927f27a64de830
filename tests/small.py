"""A tiny text encoder with a tokenizer, in a folder, and text for it: what a user would have, made at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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


def word_pieces(texts: Sequence[str], alphabet: Sequence[str], special: Sequence[str], size: int) -> dict[str, int]:
    """Return a vocabulary of WordPiece: single letters, then the beginnings and continuations that occur most.

    The trainer of the tokenizers' library breaks ties by chance, and another vocabulary is another network.
    """
    counts: Counter[str] = Counter()
    for word in (word for text in texts for word in text.lower().split()):
        for start in range(len(word)):
            for end in range(start + 2, len(word) + 1):
                counts["##" * (start > 0) + word[start:end]] += 1
    letters = sorted(set(alphabet))
    ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
    pieces = dict.fromkeys([*special, *letters, *("##" + letter for letter in letters), *ranked])
    return {piece: number for number, piece in enumerate(list(pieces)[:size])}


def write_network(folder: Path, seed: int = 0, layers: int = 3) -> Path:
    """Write a random BERT of a few layers with a WordPiece tokenizer and return its folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = word_pieces(sentences(200), "abcdefghijklmnopqrstuvwxyz0123456789.,;-", special, 200)
    backend = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = BertTokenizer(tokenizer_object=backend)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=layers,
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
