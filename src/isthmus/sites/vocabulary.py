"""Vocabulary: take tokens out of a tokenizer so that removed words fall back to their pieces.

Works on WordPiece (BERT, DistilBERT, ELECTRA, MPNet) and on byte-pair encoding (RoBERTa, ModernBERT), through the
JSON that describes a fast tokenizer: read it, take entries out, number the rest anew, build a tokenizer of the same
class from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import BadInput, UnsupportedNetwork

# Families that count positions from the padding id put it right behind one or two special tokens. Below this id,
# everything up to the padding token stays, so that its id does not change; above it, nothing depends on it.
_LEADING_IDS = 16

# Arguments that name a vocabulary: the new tokenizer must not find the old one through them.
_VOCABULARY_ARGUMENTS = ("vocab", "merges", "vocab_file", "merges_file", "tokenizer_file", "added_tokens_decoder")


def _description(tokenizer: Any) -> dict[str, Any]:
    """Return the JSON description of a fast tokenizer, or refuse a kind whose pieces cannot be taken out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedNetwork(
            f"tokenizer {type(tokenizer).__name__}: not a fast tokenizer; save it as one, with a tokenizer.json"
        )
    description: dict[str, Any] = json.loads(backend.to_str())
    kind = description["model"].get("type")
    if kind not in ("WordPiece", "BPE"):
        raise UnsupportedNetwork(
            f"tokenizer {type(tokenizer).__name__}: the vocabulary of a {kind} model cannot be narrowed; "
            "leave the vocabulary out of the plan"
        )
    return description


def _merges(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges of a byte-pair encoding as pairs; older files write a pair as one string."""
    pairs = description["model"].get("merges") or []
    split = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in pairs)
    return [(first, second) for first, second in split]


def fixed_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that must stay in a vocabulary.

    These are the special and added tokens, every piece of a single character (or byte), words that cannot be built
    from such pieces, and, where the padding id stands among the first few, all ids up to it.

    Parameters
    ----------
    tokenizer : transformers fast tokenizer
        WordPiece or byte-pair encoding.

    Returns
    -------
    tuple of int
        Rising.

    Raises
    ------
    UnsupportedNetwork
        If the tokenizer is neither.
    """
    description = _description(tokenizer)
    model, vocabulary = description["model"], description["model"]["vocab"]
    fixed = {int(token["id"]) for token in description["added_tokens"]}
    fixed |= {int(identifier) for identifier in tokenizer.all_special_ids}
    if model.get("unk_token") in vocabulary:
        fixed.add(int(vocabulary[model["unk_token"]]))
    if model["type"] == "WordPiece":
        fixed |= _fixed_pieces(vocabulary, model.get("continuing_subword_prefix") or "")
    else:
        fixed |= _fixed_symbols(vocabulary, _merges(description), bool(model.get("byte_fallback")))
    padding = tokenizer.pad_token_id
    if padding is not None and padding < _LEADING_IDS:
        fixed |= {identifier for identifier in vocabulary.values() if identifier <= padding}
    return tuple(sorted(fixed))


def _fixed_pieces(vocabulary: Mapping[str, int], prefix: str) -> set[int]:
    """Single characters of a WordPiece vocabulary, first in a word or within it, and what they cannot spell."""
    first = {token for token in vocabulary if len(token) == 1}
    inner = {token[len(prefix) :] for token in vocabulary if token.startswith(prefix) and len(token) == len(prefix) + 1}
    fixed = set()
    for token, identifier in vocabulary.items():
        continues = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        text = token[len(prefix) :] if continues else token
        spelt = all(char in (inner if continues or place else first) for place, char in enumerate(text))
        if len(text) <= 1 or not spelt:
            fixed.add(identifier)
    return fixed


def _fixed_symbols(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], byte_fallback: bool) -> set[int]:
    """Symbols of a byte-pair vocabulary that no merge builds: bytes, single characters, whatever else was added."""
    built = {first + second for first, second in merges}
    return {
        identifier
        for token, identifier in vocabulary.items()
        if len(token) == 1 or token not in built or (byte_fallback and token.startswith("<0x"))
    }


def token_relevance(tokenizer: Any, counts: NDArray[Any]) -> NDArray[np.float64]:
    """Lift the relevance of each token that others are built from just above theirs.

    In a byte-pair encoding a token is built by merging two others; without those it is never reached. With the
    values returned here, tokens removed by rising relevance always leave a vocabulary that is closed under merging.
    WordPiece has no such order: there the counts come back as they are.

    Parameters
    ----------
    tokenizer : transformers fast tokenizer
    counts : ndarray, shape ``(tokens,)``
        Relevance of each token by id: how often it occurs, or nats. At least as long as the highest id + 1.

    Returns
    -------
    ndarray, shape ``(tokens,)``, float64

    Raises
    ------
    BadInput
        If there are fewer counts than tokens.
    UnsupportedNetwork
        If the tokenizer is neither WordPiece nor byte-pair encoding.
    """
    description = _description(tokenizer)
    relevance = np.array(counts, dtype=np.float64)
    vocabulary = description["model"]["vocab"]
    if vocabulary and max(vocabulary.values()) >= len(relevance):
        raise BadInput(f"relevance of tokens: {len(relevance)} values for ids up to {max(vocabulary.values())}")
    # A part is shorter than what it builds, so going from long to short meets every token after its descendants.
    for first, second in sorted(_merges(description), key=lambda pair: -len(pair[0]) - len(pair[1])):
        if first + second not in vocabulary:
            continue
        above = np.nextafter(relevance[vocabulary[first + second]], np.inf)
        for part in (first, second):
            if part in vocabulary:
                relevance[vocabulary[part]] = max(relevance[vocabulary[part]], above)
    return relevance


def narrow_tokenizer(tokenizer: Any, keep: Sequence[int]) -> Any:
    """Return a tokenizer of the same class that knows only some of the tokens, numbered anew in the same order.

    Token ``i`` of the new tokenizer is token ``keep[i]`` of the old one. Padding and truncation, which belong to a
    call and not to the vocabulary, are left for each call to set.

    Parameters
    ----------
    tokenizer : transformers fast tokenizer
        WordPiece or byte-pair encoding. It is left as it was.
    keep : sequence of int
        Rising ids; must hold ``fixed_tokens(tokenizer)``. Ids that no token has (spare rows of the embedding
        table) may be among them.

    Returns
    -------
    transformers fast tokenizer

    Raises
    ------
    BadInput
        If ids are not rising, or one that must stay is missing.
    UnsupportedNetwork
        If the tokenizer is neither WordPiece nor byte-pair encoding.
    """
    from tokenizers import Tokenizer

    description = _description(tokenizer)
    ids = [int(identifier) for identifier in keep]
    if ids != sorted(set(ids)) or (ids and ids[0] < 0):
        raise BadInput("vocabulary: the ids to keep must be rising and not below zero")
    missing = sorted(set(fixed_tokens(tokenizer)) - set(ids))
    if missing:
        token = tokenizer.convert_ids_to_tokens(missing[0])
        raise BadInput(f"vocabulary: token {missing[0]} ({token}) must stay; add it and all of fixed_tokens to keep")
    new = {old: position for position, old in enumerate(ids)}
    _renumber(description, new)
    arguments = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _VOCABULARY_ARGUMENTS}
    narrowed = type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(description)), **arguments)
    if len(narrowed) > len(ids):
        raise UnsupportedNetwork(
            f"tokenizer {type(tokenizer).__name__}: adds tokens of its own when it is built; leave the vocabulary out"
        )
    return narrowed


def _renumber(description: dict[str, Any], new: Mapping[int, int]) -> None:
    """Take tokens out of a tokenizer's description and give the others their new ids, wherever ids are written."""
    model = description["model"]
    vocabulary = {token: new[old] for token, old in model["vocab"].items() if old in new}
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        model["merges"] = [
            [first, second]
            for first, second in _merges(description)
            if first in vocabulary and second in vocabulary and first + second in vocabulary
        ]
    for token in description["added_tokens"]:
        token["id"] = new[token["id"]]
    description["added_tokens"].sort(key=lambda token: token["id"])
    description["padding"] = description["truncation"] = None
    if description.get("post_processor"):
        _renumber_processor(description["post_processor"], new)


def _renumber_processor(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    """Renumber the special tokens that a post-processor inserts, which it holds by id."""
    for inner in processor.get("processors", ()):
        _renumber_processor(inner, new)
    for name in ("sep", "cls"):  # BertProcessing and RobertaProcessing: [token, id]
        if name in processor:
            processor[name][1] = new[processor[name][1]]
    specials = processor.get("special_tokens")
    if isinstance(specials, dict):  # TemplateProcessing
        for special in specials.values():
            special["ids"] = [new[old] for old in special["ids"]]
