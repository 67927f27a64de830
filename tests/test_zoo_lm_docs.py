"""lm_docs: parting by document, recall lines that can be answered, and training that goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isthmus.errors import BadInput
from isthmus.storage.opening import open as open_network
from isthmus.tasks.data import data_folder
from isthmus.tasks.recall import KINDS, Recall, answered, recall, spoken, spoken_tokens
from isthmus.zoo import lm_docs
from isthmus.zoo.catalogue import zoo_folder
from isthmus.zoo.lm_docs_planted import plant
from isthmus.zoo.lm_docs_recipe import Recipe, batch_of, build
from isthmus.zoo.lm_docs_text import FILES, encode, read_documents, train_tokenizer

TINY = Recipe(
    steps=6,
    batch=2,
    lengths=(128,),
    shares=(1.0,),
    warmup=2,
    vocabulary=560,
    width=32,
    inner=48,
    layers=2,
    heads=2,
    key_value_heads=1,
    positions=256,
    planted=False,
)
WORDS = [
    "the",
    "proposal",
    "says",
    "that",
    "a",
    "node",
    "must",
    "send",
    "every",
    "block",
    "before",
    "it",
    "is",
    "known",
]


def written(folder: Path, documents: int = 60) -> list[Path]:
    random = np.random.default_rng(0)
    parts = []
    for at in range(documents):
        head = f"PEP: {at}\nTitle: On {at}\n" if at % 2 else f"---\neip: {at}\ntitle: on {at}\n---\n"
        parts.append(head + "\n" + " ".join(random.choice(WORDS, size=200)) + "\n\n")
    files = [folder / "one.txt", folder / "two.txt"]
    files[0].write_text("".join(parts[: documents // 2]))
    files[1].write_text("".join(parts[documents // 2 :]))
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return written(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tokenizer(files: list[Path]) -> Any:
    return train_tokenizer([*read_documents(files).train, *spoken(200)], TINY.vocabulary)


def test_documents_are_parted_for_good(files: list[Path]) -> None:
    found = read_documents(files)
    assert len(found.train) + len(found.held_out) == 60
    assert len(found.held_out) >= 1
    assert not set(found.train) & set(found.held_out)
    assert set(read_documents(files[::-1]).held_out) == set(found.held_out)
    assert all(one.startswith(("PEP: ", "---\neip: ")) for one in found.train)


def test_text_turns_round(files: list[Path], tokenizer: Any) -> None:
    document = read_documents(files).train[0]
    ids = encode(tokenizer, [document, document])
    assert tokenizer.decode(ids[: len(ids) // 2 - 1]) == document
    assert ids[-1] == tokenizer.eos_token_id
    assert len(tokenizer(" 4821", add_special_tokens=False)["input_ids"]) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_recall_lines_say_what_they_ask_for(kind: Any, files: list[Path], tokenizer: Any) -> None:
    text = encode(tokenizer, read_documents(files).train)
    for seed in range(5):
        made = recall(tokenizer, kind, 500, np.random.default_rng(seed), text)
        assert 300 < len(made.ids) <= 500
        assert np.array_equal(made.ids, recall(tokenizer, kind, 500, np.random.default_rng(seed), text).ids)
        assert made.answers
        for start, stop in made.answers:
            before, answer = tokenizer.decode(made.ids[:start]), tokenizer.decode(made.ids[start:stop])
            if kind == "copies":
                assert answer in before
                assert stop - start <= 8
            else:
                name = before[before.rindex("The code of ") :]
                assert len(answer) == 5
                assert name + answer in before


def test_recall_is_scored_answer_by_answer(tokenizer: Any) -> None:
    model = build(TINY).eval()
    ids = np.arange(10, 40, dtype=np.int32)
    with torch.no_grad():
        guessed = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].argmax(-1).numpy()
    told = ids.copy()
    told[20] = guessed[19]
    answers = ((20, 21), (5, 7))
    with torch.no_grad():
        again = model(torch.from_numpy(told.astype(np.int64))[None]).logits[0].argmax(-1).numpy()
    wanted = np.mean([np.array_equal(again[a - 1 : b - 1], told[a:b]) for a, b in answers])
    assert answered(model, Recall(told, answers)) == wanted == 0.5


class Killed(Exception):
    """Stands for a process that is gone between two steps."""


def test_a_run_that_was_stopped_ends_as_one_that_was_not(files: list[Path], tmp_path: Path) -> None:
    def killer(stage: str, done: float, total: float, note: str = "") -> None:
        if stage == "training" and done == 5:
            raise Killed

    whole = lm_docs.train(files, tmp_path / "whole", TINY, save_every=2)
    with pytest.raises(Killed):
        lm_docs.train(files, tmp_path / "cut", TINY, save_every=2, progress=killer)
    assert not (tmp_path / "cut").exists()
    assert lm_docs.train(files, tmp_path / "cut", TINY, save_every=2, stop_after=5) is None
    seen: list[float] = []
    found = lm_docs.train(
        files, tmp_path / "cut", TINY, save_every=2, progress=lambda stage, done, total, note="": seen.append(done)
    )
    assert seen == [6]
    assert found == whole
    assert found is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert all(path.stat().st_size <= 5_000_000 for path in (tmp_path / "cut").iterdir())
    card = json.loads((tmp_path / "cut" / "lm_docs.json").read_text())
    assert card["measured"]["perplexity"] == found.perplexity
    assert card["recipe"]["layers"] == 2


def test_what_was_written_is_opened_by_transformers(files: list[Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = lm_docs.train(files, tmp_path / "made", replace(TINY, steps=2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    again = lm_docs.measure(model, tokenizer, encode(tokenizer, read_documents(files).held_out), TINY.length)
    assert found is not None
    assert again.perplexity == pytest.approx(found.perplexity, rel=1e-2)  # float16 on disk


def test_it_learns(files: list[Path], tmp_path: Path) -> None:
    said: list[float] = []
    recipe = replace(TINY, steps=40, recall=0.0, warmup=5, rate=5e-3)
    lm_docs.train(
        files,
        tmp_path / "made",
        recipe,
        stop_after=39,
        progress=lambda stage, done, total, note="": (
            said.append(float(note.split()[0])) if stage == "training" else None
        ),
    )
    assert np.mean(said[-5:]) < 0.8 * np.mean(said[:3])


def test_sequences_grow_from_stage_to_stage(files: list[Path], tokenizer: Any) -> None:
    recipe = replace(TINY, steps=10, batch=2, lengths=(128, 256), shares=(0.7, 0.3), recall=1.0)
    assert [recipe.length_at(step) for step in (0, 6, 7, 9)] == [128, 128, 256, 256]
    text = encode(tokenizer, read_documents(files).train)
    for step in (6, 7):
        ids = batch_of(recipe, tokenizer, text, step)
        assert ids.shape == (4, 128) if step == 6 else (2, 256)
        assert torch.equal(ids, batch_of(recipe, tokenizer, text, step))
        assert all("code of" in tokenizer.decode(row) or "Again" in tokenizer.decode(row) for row in ids)


def test_each_word_of_recall_lines_is_a_token(files: list[Path]) -> None:
    made = train_tokenizer([*read_documents(files).train, *spoken(20)], 700)
    line = made("The code of amber anchor is 4821.", add_special_tokens=False)["input_ids"]
    assert len(line) == 12


def test_rates_rise_and_fall() -> None:
    rates = [Recipe(steps=100, warmup=10, rate=1.0).rate_at(step) for step in range(100)]
    assert rates[9] == 1.0 == max(rates)
    assert rates[0] == pytest.approx(0.1)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_bad_input_is_one_line(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert lm_docs.main(["-o", str(tmp_path / "made"), *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert not list(tmp_path.glob("made*"))
        return lines[0]

    assert "cannot be read" in refused("--data", str(tmp_path / "none.txt"))
    few = tmp_path / "few.txt"
    few.write_text("PEP: 1\nTitle: a\nb\n")
    assert "1 documents" in refused("--data", str(few))
    assert "give 1 or more" in refused("--data", str(files[0]), "--steps", "0")
    with pytest.raises(BadInput, match="128 or more"):
        replace(TINY, lengths=(3,))
    with pytest.raises(BadInput, match="1 in all"):
        replace(TINY, lengths=(128, 256), shares=(0.5, 0.4))
    with pytest.raises(BadInput, match="holds something"):
        lm_docs.train(files, files[0].parent, TINY)
    with pytest.raises(BadInput, match="choose pairs, copies, needles"):
        recall(None, "songs", 200, np.random.default_rng(0))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="text to lie in"):
        recall(None, "needles", 200, np.random.default_rng(0), np.zeros(10, dtype=np.int32))


def test_without_data_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ISTHMUS_DATA", raising=False)
    assert lm_docs.main(["-o", "nowhere"]) == 2
    assert "set ISTHMUS_DATA" in capsys.readouterr().err


def test_recall_through_a_cache_is_recall(files: list[Path], tokenizer: Any) -> None:
    from transformers import DynamicCache

    model = build(TINY).eval()
    made = recall(tokenizer, "pairs", 200, np.random.default_rng(0))
    with torch.no_grad():
        guessed = model(torch.from_numpy(made.ids.astype(np.int64))[None]).logits[0].argmax(-1).numpy()
    told = made.ids.copy()
    for start, stop in made.answers[::2]:
        told[start:stop] = guessed[start - 1 : stop - 1]  # of these, those whose tokens do not depend on one another
    asked = Recall(told, made.answers)
    assert answered(model, asked, DynamicCache(config=model.config)) == answered(model, asked)


def test_the_kept_network_reads_and_recalls() -> None:
    """What its card says was measured of it, roughly: recall on lines made here, perplexity where the text is."""
    network = open_network("lm-docs")
    assert network.continues
    folder = zoo_folder("lm-docs")
    assert all(path.stat().st_size <= 5_000_000 for path in folder.iterdir())
    card = json.loads((folder / "lm_docs.json").read_text())["measured"]
    random = np.random.default_rng(3)
    lines = [recall(network.tokenizer, "pairs", 512, random) for _ in range(3)]
    assert np.mean([answered(network.model, line) for line in lines]) >= 0.7 * card["recall"]["pairs"] > 0
    data = data_folder()
    if data is not None:
        text = encode(network.tokenizer, read_documents([data / name for name in FILES]).held_out)
        found = lm_docs.measure(network.model, network.tokenizer, text, 1024, count=4)
        assert found.perplexity == pytest.approx(card["perplexity"], rel=0.3)


def test_planted_heads_find_again_what_stood_before(files: list[Path]) -> None:
    """Without any training: copies are continued, and the right line of a name is found, far above chance."""
    made = train_tokenizer([*read_documents(files).train, *spoken(200)], 700)
    model = build(replace(Recipe(), vocabulary=700)).eval()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    plant(model, spoken_tokens(made))
    assert torch.equal(before["model.layers.0.mlp.up_proj.weight"], model.model.layers[0].mlp.up_proj.weight)
    random = np.random.default_rng(0)
    right = []
    for _ in range(3):
        example = recall(made, "copies", 160, random)
        ids = torch.from_numpy(example.ids.astype(np.int64))
        with torch.no_grad():
            guessed = model(ids[None]).logits[0].argmax(-1)
        right += [(guessed[a - 1 : b - 1] == ids[a:b]).float().mean().item() for a, b in example.answers]
    assert np.mean(right) > 0.5
