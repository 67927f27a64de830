"""A narrowed vocabulary spells the same texts with the tokens that are left."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import small
from isthmus.errors import BadInput, UnsupportedNetwork
from isthmus.sites.vocabulary import fixed_tokens, narrow_tokenizer, token_relevance

STORY = (
    "the narrow strip of land between two wide waters carries every traveller who walks from north to south "
    "narrower bridges carried travellers walking over wider water while the wide land narrowed northwards 12 34 567"
)
WORDS = STORY.split()
TEXTS = [" ".join(WORDS[start : start + 9]) for start in range(0, len(WORDS), 3)] * 4
PROBES = [*TEXTS[:6], "Northwards, the travellers' bridge (567) narrows!", "wide-water walkers", "a", "12 567"]


def _bert(special: list[str], **arguments: Any) -> Tokenizer:
    words = small.word_pieces(TEXTS, "abcdefghijklmnopqrstuvwxyz0123456789(),.!'-", special, 260)
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bytes(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@cache
def tokenizer_of(family: str) -> Any:
    """A small tokenizer of a family, saved and read back as a user would have it."""
    from transformers import AutoTokenizer, BertTokenizer, MPNetTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

    if family == "minilm":
        from isthmus.storage.opening import minilm_folder

        return AutoTokenizer.from_pretrained(minilm_folder())
    bert = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    roberta = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if family == "bert":
        made: Any = BertTokenizer(tokenizer_object=_bert(bert))
    elif family == "mpnet":
        made = MPNetTokenizer(tokenizer_object=_bert(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]))
    elif family == "roberta":
        made = RobertaTokenizer(tokenizer_object=_bytes(roberta))
    else:  # as ModernBERT has it: special tokens at the end, a template around the text, an added run of blanks
        backend = _bytes([])
        backend.add_special_tokens(bert)
        backend.add_tokens([AddedToken("     ", normalized=True)])
        ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ids
        )
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), bert, strict=True))
        made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    return reloaded(made)


def reloaded(tokenizer: Any) -> Any:
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


FAMILIES = ["bert", "mpnet", "roberta", "modernbert", "minilm"]
SPECIAL = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def check_narrowed(original: Any, narrowed: Any, keep: list[int], probes: list[str]) -> None:
    """What must hold of any narrowed tokenizer."""
    assert type(narrowed) is type(original)
    assert set(narrowed.get_vocab()) <= set(original.get_vocab())
    assert narrowed.model_input_names == original.model_input_names
    for token, position in narrowed.get_vocab().items():
        assert original.convert_tokens_to_ids(token) == keep[position]
    for name in SPECIAL:
        old, new = getattr(original, f"{name}_token_id"), getattr(narrowed, f"{name}_token_id")
        assert (new is None) == (old is None)
        assert new is None or keep[new] == old
    for text in probes:
        before, after = original(text)["input_ids"], narrowed(text)["input_ids"]
        assert max(after) < len(keep)
        decoded = [side.decode(ids, skip_special_tokens=True) for side, ids in ((original, before), (narrowed, after))]
        assert decoded[0] == decoded[1]
        assert after.count(narrowed.unk_token_id) <= before.count(original.unk_token_id)
        assert (keep[after[0]], keep[after[-1]]) == (before[0], before[-1])
    old_pair, new_pair = original(probes[0], probes[1]), narrowed(probes[0], probes[1])
    assert old_pair.keys() == new_pair.keys()
    padded = narrowed(probes, padding=True, truncation=True, max_length=8)
    assert {len(ids) for ids in padded["input_ids"]} == {8}
    short = probes.index(min(probes, key=len))
    assert padded["input_ids"][short][-1] == narrowed.pad_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_changes_nothing(family: str) -> None:
    original = tokenizer_of(family)
    keep = list(range(len(original)))
    narrowed = narrow_tokenizer(original, keep)
    assert narrowed.get_vocab() == original.get_vocab()
    for text in PROBES:
        assert narrowed(text)["input_ids"] == original(text)["input_ids"]
        assert reloaded(narrowed)(text)["input_ids"] == original(text)["input_ids"]
    check_narrowed(original, narrowed, keep, PROBES)


@pytest.mark.parametrize("family", FAMILIES)
def test_smallest_vocabulary_spells_everything(family: str) -> None:
    original = tokenizer_of(family)
    keep = list(fixed_tokens(original))
    assert len(keep) < len(original)
    narrowed = narrow_tokenizer(original, keep)
    check_narrowed(original, narrowed, keep, PROBES)
    again = reloaded(narrowed)
    check_narrowed(original, again, keep, PROBES)
    assert [again(text)["input_ids"] for text in PROBES] == [narrowed(text)["input_ids"] for text in PROBES]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "minilm"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_vocabulary_that_holds_the_fixed_tokens_works(family: str, data: st.DataObject) -> None:
    original = tokenizer_of(family)
    fixed = set(fixed_tokens(original))
    free = [identifier for identifier in range(len(original)) if identifier not in fixed]
    chosen = data.draw(st.sets(st.sampled_from(free)))
    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
    texts = data.draw(st.lists(words, min_size=2, max_size=4))
    keep = sorted(fixed | chosen)
    check_narrowed(original, narrow_tokenizer(original, keep), keep, [*texts, "the wide land narrowed northwards", "a"])


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
@given(seed=st.integers(0, 2**16), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_removal_by_rising_relevance_leaves_no_token_unreachable(family: str, seed: int, share: float) -> None:
    import json

    original = tokenizer_of(family)
    counts = np.random.default_rng(seed).integers(0, 4, len(original))
    relevance = token_relevance(original, counts)
    assert relevance.dtype == np.float64
    assert (relevance >= counts).all()
    fixed = set(fixed_tokens(original))
    order = sorted(set(range(len(original))) - fixed, key=lambda identifier: relevance[identifier])
    keep = sorted(fixed | set(order[int(share * len(order)) :]))
    model = json.loads(narrow_tokenizer(original, keep).backend_tokenizer.to_str())["model"]
    built = {first + second for first, second in model["merges"]}
    special = set(original.all_special_tokens)
    assert all(len(token) == 1 or token in built or token in special for token in model["vocab"])


def test_texts_whose_tokens_all_stay_keep_their_tokens() -> None:
    original = tokenizer_of("roberta")
    counts = np.bincount([i for text in TEXTS[:3] for i in original(text)["input_ids"]], minlength=len(original))
    relevance = token_relevance(original, counts)
    keep = sorted({*fixed_tokens(original), *np.flatnonzero(relevance > 0).tolist()})
    assert len(keep) < len(original)
    narrowed = narrow_tokenizer(original, keep)
    for text in TEXTS[:3]:
        assert [keep[i] for i in narrowed(text)["input_ids"]] == original(text)["input_ids"]


def test_relevance_of_word_pieces_is_their_count() -> None:
    original = tokenizer_of("bert")
    counts = np.arange(len(original))
    assert (token_relevance(original, counts) == counts).all()


def test_the_padding_id_of_a_position_counting_family_stays() -> None:
    for family in ("roberta", "mpnet"):
        original = tokenizer_of(family)
        assert narrow_tokenizer(original, fixed_tokens(original)).pad_token_id == original.pad_token_id == 1


def test_spare_rows_may_be_kept() -> None:
    original = tokenizer_of("modernbert")
    keep = [*fixed_tokens(original), len(original) + 2, len(original) + 7]
    check_narrowed(original, narrow_tokenizer(original, keep), keep, PROBES)


def test_the_original_and_its_state_stay_out_of_it() -> None:
    original = tokenizer_of("bert")
    before = original.backend_tokenizer.to_str()
    keep = fixed_tokens(original)
    first = narrow_tokenizer(original, keep)
    assert original.backend_tokenizer.to_str() == before
    original(PROBES, padding=True, truncation=True, max_length=5)
    second = narrow_tokenizer(original, keep)
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert str(first.init_kwargs) == str(second.init_kwargs)


def test_bad_input() -> None:
    original = tokenizer_of("bert")
    keep = list(fixed_tokens(original))
    with pytest.raises(BadInput, match="must stay"):
        narrow_tokenizer(original, keep[1:])
    with pytest.raises(BadInput, match="rising"):
        narrow_tokenizer(original, keep[::-1])
    with pytest.raises(BadInput, match="values for ids"):
        token_relevance(original, np.zeros(3))
    with pytest.raises(UnsupportedNetwork, match="fast tokenizer"):
        fixed_tokens(object())


def test_a_unigram_tokenizer_is_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(UnsupportedNetwork, match="Unigram"):
        fixed_tokens(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))


def test_minilm_keeps_under_a_tenth_at_least() -> None:
    original = tokenizer_of("minilm")
    assert 1999 <= len(fixed_tokens(original)) <= 2100
    assert Path(original.name_or_path).name == "model"
