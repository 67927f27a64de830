"""Language models in the flow: the task, the divergence, the likelihood, and plans that are carried out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import decoders
import small
from isthmus import continuing
from isthmus.continuing import next_logits, text_nats, windows
from isthmus.errors import BadInput
from isthmus.export.engines import engine_embed
from isthmus.network import Network, embed, encode, outputs
from isthmus.storage.opening import open as open_network
from isthmus.tasks import evaluate, load_task
from isthmus.tasks.divergence import divergence
from isthmus.tasks.language import HELD_OUT_CHARACTERS, TRAIN_CHARACTERS, pieces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoders.write_decoder(tmp_path_factory.mktemp("lm") / "tiny")


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return open_network(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_text(tmp_path_factory.mktemp("text") / "running.txt", 500)


def test_a_causal_model_is_opened_as_a_language_model(network: Network) -> None:
    assert (network.pooling, network.continues, network.predicts, network.max_length) == ("tokens", True, True, 64)
    inputs = encode(network, ["narow", "strip of land between"])
    assert inputs["attention_mask"][0].tolist() == sorted(inputs["attention_mask"][0].tolist(), reverse=True)
    count = int(inputs["attention_mask"].sum()) - 2
    assert outputs(network, inputs).shape == (count, len(network.tokenizer)), "every token but the first of each text"


@pytest.mark.parametrize(("tokens", "length"), [(1, 8), (8, 8), (9, 8), (30, 8), (31, 7), (5, 2)])
def test_windows_count_every_token_but_the_first_once(tokens: int, length: int) -> None:
    counted: list[int] = []
    for start, stop, first in windows(tokens, length):
        assert stop - start <= length
        assert first > start, "what counts has a token before it"
        assert first - start >= length // 2 or start == 0
        counted += range(first, stop)
    assert counted == list(range(1, tokens))


def test_nats_are_those_of_each_text_alone(network: Network) -> None:
    """Against one text at a time, whole, padded by nothing."""
    texts = ["narow strip", "of land between two wide bridge", "walk er " * 6]
    found = text_nats(network, texts)
    for text, (nats, tokens) in zip(texts, found, strict=True):
        ids = torch.tensor([network.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = network.model(input_ids=ids).logits
        assert tokens == ids.shape[1] - 1
        assert nats == pytest.approx(float(F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")), rel=1e-5)
    assert np.allclose(embed(network, texts), found)


def test_a_long_text_is_run_in_windows(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(small.sentences(20))
    ids = network.tokenizer(text)["input_ids"]
    assert len(ids) > 3 * 64
    nats = 0.0
    for start, stop, first in windows(len(ids), 64):
        part = torch.tensor([ids[start:stop]])
        with torch.no_grad():
            logits = network.model(input_ids=part).logits[0]
        nats += float(F.cross_entropy(logits[first - start - 1 : -1], part[0, first - start :], reduction="sum"))
    monkeypatch.setattr(continuing, "WINDOW_TOKENS", 128)
    found = text_nats(network, ["narow strip", text])
    assert found[1].tolist() == [pytest.approx(nats, rel=1e-5), len(ids) - 1]


def test_divergence_is_that_of_next_tokens_in_nats_a_token() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    other = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    shares, theirs = logits.double().softmax(-1), other.double().softmax(-1)
    each = (theirs * (theirs / shares).log()).sum(-1)
    wanted = (each[0, 0] + each[0, 1] + each[1, 0]) / 3
    found = divergence(next_logits(logits, mask), next_logits(other, mask), "tokens")
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_pieces_hold_all_of_a_text() -> None:
    text = " ".join(small.sentences(40)) + "x" * 1500
    found = pieces(text, 600)
    assert "".join(found) == text
    assert max(map(len, found)) <= 600
    assert all(piece.endswith(" ") for piece in found[:3])


def test_the_task_is_read(text: Path, tmp_path: Path) -> None:
    task = load_task(f"lm:{text}")
    assert (task.kind, task.metric_name) == ("lm", "likelihood")
    assert max(map(len, task.held_out.passages)) <= HELD_OUT_CHARACTERS
    assert max(map(len, task.train)) <= TRAIN_CHARACTERS
    held = "".join(task.held_out.passages)
    assert all(piece not in held for piece in task.train)
    again = load_task(("lm", [text.read_text()]))
    assert (again.train, again.held_out) == (task.train, task.held_out)
    (tmp_path / "train.txt").write_text("a" * 3000)
    (tmp_path / "valid.txt").write_text("b" * 3000)
    parts = load_task(f"lm:{tmp_path}")
    assert set("".join(parts.train)) == {"a"}
    assert set("".join(parts.held_out.passages)) == {"b"}
    (tmp_path / "short.txt").write_text("too little of it")
    with pytest.raises(BadInput, match="too little text"):
        load_task(f"lm:{tmp_path / 'short.txt'}")
    with pytest.raises(BadInput, match="text 0 is a int"):
        load_task(("lm", [3]))


def test_likelihood_is_one_over_perplexity(network: Network, text: Path) -> None:
    task = load_task(f"lm:{text}")
    found = evaluate(lambda texts: embed(network, texts), task)
    nats, tokens = text_nats(network, task.held_out.passages).astype(float).sum(0)  # type: ignore[arg-type]
    assert found.value == pytest.approx(1 / math.exp(nats / tokens), rel=1e-5)
    assert found.ci95[0] <= found.value <= found.ci95[1]


def test_an_engine_gives_the_same_nats(network: Network, tmp_path: Path) -> None:
    texts = ["narow strip of land", " ".join(small.sentences(12))]
    found = engine_embed(network, "openvino", tmp_path)(texts)
    assert np.allclose(found, text_nats(network, texts), rtol=1e-4)
