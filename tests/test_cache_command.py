"""``isthmus cache save`` and ``load``: a file and back, and one clear line for each bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decoders import VOCABULARY, decoder
from isthmus.bottlenecks.cache.stream.prompts import levels_for
from isthmus.cli.main import main
from isthmus.errors import BadInput

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny decoder, a tokenizer of letters and a text."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("cache")
    decoder().save_pretrained(place / "model")
    letters = {chr(32 + at) if at >= 3 else f"<{at}>": at for at in range(VOCABULARY)}
    made = Tokenizer(WordLevel(letters, unk_token="<0>"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    made.decoder = Fuse()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<0>").save_pretrained(place / "model")
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 3)
    (place / "empty.txt").write_text(" \n")
    return place


@pytest.fixture
def within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def told(capsys: Capture, *arguments: str) -> dict[str, object]:
    assert main(["cache", *arguments, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_cache_is_saved_and_loaded(within: Path, capsys: Capture) -> None:
    saved = told(capsys, "save", "model", "--text", "text.txt", "-o", "fine.kv", "--level", "0")
    assert saved["bytes"] == (within / "fine.kv").stat().st_size < saved["full_bytes"]
    loaded = told(capsys, "load", "model", "fine.kv", "--tokens", "5")
    assert len(str(loaded.pop("continuation"))) == 5
    saved.pop("continuation")
    assert loaded == saved
    assert main(["cache", "load", "model", "fine.kv", "--tokens", "2"]) == 0
    assert "132 tokens in" in capsys.readouterr().out


def test_the_level_follows_from_the_bandwidth(within: Path, capsys: Capture) -> None:
    arguments = ("save", "model", "--text", "text.txt", "-o", "sent.kv", "--deadline", "1")
    wide = told(capsys, *arguments, "--bandwidth", "10")
    tight = told(capsys, *arguments, "--bandwidth", str(0.75e-6 * float(str(wide["bytes"]))))
    assert wide["levels"] == ["finest"]
    assert tight["levels"] != ["finest"]
    assert levels_for([[100, 50, 25], [100, 50, 25]], 100.0, 1.5) == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("save", "nowhere", "--text", "text.txt", "-o", "a.kv"), "no such folder"),
        (("save", "model", "--text", "none.txt", "-o", "a.kv"), "cannot be read"),
        (("save", "model", "--text", "empty.txt", "-o", "a.kv"), "is empty"),
        (("save", "model", "--text", "text.txt", "-o", "a.kv", "--level", "7"), "choose 0 (finest) to 3"),
        (("save", "model", "--text", "text.txt", "-o", "a.kv", "--bandwidth", "3"), "together"),
        (("save", "model", "--text", "text.txt", "-o", "no/a.kv"), "does not exist"),
        (
            ("save", "model", "--text", "text.txt", "-o", "a.kv", "--bandwidth", "0.001", "--deadline", "1"),
            "do not arrive in 1 s",
        ),
        (("load", "model", "none.kv"), "cannot be read"),
        (("load", "model", "text.txt"), "it is none, or cut short"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str, within: Path, capsys: Capture) -> None:
    before = sorted(within.iterdir())
    assert main(["cache", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error: ")
    assert sorted(within.iterdir()) == before


def test_a_cache_of_another_network_is_refused(within: Path, capsys: Capture) -> None:
    told(capsys, "save", "model", "--text", "text.txt", "-o", "own.kv")
    other = within / "other"
    if not other.exists():
        decoder(seed=9).save_pretrained(other)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (other / name).write_bytes((within / "model" / name).read_bytes())
    assert main(["cache", "load", "other", "own.kv"]) == 2
    assert "made by another network" in capsys.readouterr().err


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(BadInput, match=r"at least 0\.5 s"):
        levels_for([[100, 50]], 100.0, 0.2)
