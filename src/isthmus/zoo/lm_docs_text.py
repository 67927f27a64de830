"""The text of lm_docs: technical documents, parted by document, and a vocabulary of byte pairs of their own."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.errors import BadInput
from isthmus.tasks.recall import Ids

FILES = ("text/peps.txt", "text/eips.txt")
VOCABULARY = 4096
END = "<|end|>"
PADDING = "<|pad|>"
_START = re.compile(r"^(?=PEP: \d+\nTitle:|---\neip: \d+\n)", re.MULTILINE)
_HELD_OUT = 20
"""One document in so many is held out."""
_FEWEST = 20


@dataclass(frozen=True)
class Documents:
    """Documents, parted for good: which part one is in depends on its own text alone."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def default_files() -> tuple[Path, ...]:
    """Return the files under the folder that ISTHMUS_DATA names.

    Raises
    ------
    BadInput
        If it is not set.
    """
    folder = os.environ.get("ISTHMUS_DATA")
    if not folder:
        raise BadInput("lm_docs: no text; give --data FILE (several), or set ISTHMUS_DATA to the folder of the data")
    return tuple(Path(folder) / name for name in FILES)


def read_documents(files: Sequence[Path]) -> Documents:
    """Read files of documents (of Python's or Ethereum's proposals, one after another) and part them.

    Raises
    ------
    BadInput
        If a file is missing, not UTF-8, or there are too few documents in all.
    """
    found: list[str] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise BadInput(f"text {path}: cannot be read ({reason}); give peps.txt and eips.txt") from None
        found += [part.strip() for part in _START.split(text) if part.strip()]
    # The same document twice must not be in both parts.
    documents = list(dict.fromkeys(found))
    held = [one for one in documents if _is_held_out(one)]
    train = [one for one in documents if not _is_held_out(one)]
    if len(documents) < _FEWEST or not held or not train:
        raise BadInput(
            f"text: {len(documents)} documents; give {_FEWEST} or more that begin with PEP: or, after ---, eip:"
        )
    return Documents(tuple(train), tuple(held))


def _is_held_out(document: str) -> bool:
    return int(hashlib.sha256(document[:200].encode()).hexdigest(), 16) % _HELD_OUT == 0


def train_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> Any:
    """Return a byte-pair tokenizer that was trained on texts; digits stand alone, so that numbers can be recalled.

    Returns
    -------
    PreTrainedTokenizerFast
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    made.decoder = Decoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PADDING, END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer, length=len(texts))
    return wrapped(made.to_str())


def wrapped(data: str) -> Any:
    """Return the transformers tokenizer around the JSON of one that was trained."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(data)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PADDING, eos_token=END, bos_token=END)


def encode(tokenizer: Any, texts: Sequence[str]) -> Ids:
    """Return texts as one row of token ids, int32, with an end after each."""
    end = [tokenizer.eos_token_id]
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array(row + end, dtype=np.int32) for row in rows])
