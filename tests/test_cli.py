"""The command: what it prints, what it returns to the shell, and one clear line for every bad input."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import quick
import small
from isthmus.cli import options
from isthmus.cli.main import main
from isthmus.cli.progress import _Lines, reporting
from isthmus.errors import BadInput

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network and a text."""
    place = tmp_path_factory.mktemp("cli")
    small.write_network(place / "tiny")
    small.write_text(place / "text.txt")
    return place


@pytest.fixture
def within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def refused(capsys: Capture, *arguments: str) -> str:
    """Run the command, check that it is refused in one line, and return that line."""
    before = sorted(Path.cwd().iterdir())
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert err.splitlines()[-1] == errors[0]
    assert "Traceback" not in err
    assert out == ""
    assert sorted(Path.cwd().iterdir()) == before, "something was written"
    return errors[0]


# What is refused before anything is opened.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "tiny", "--task", "text:text.txt"], "no budget given"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "params=50%", "--keep", "98%"], "more than one"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "parms=50%"], "did you mean params"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "beauty=50%"], "the currencies are"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "params=150%"], "above 100 %"),
        (["plan", "tiny", "--task", "text:text.txt", "--keep", "150%"], "not a share"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", "no/p.json"], "does not exist"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", "tiny"], "is a folder"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "params=50%", "--effort", "fastest"], "did you mean"),
        (["plan", "tiny", "--task", "text:text.txt", "--to", "params=50%", "--engine", "openvno"], "openvino"),
        (["narrow", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", "new", "--time", "soon"], "20min"),
        (["narrow", "tiny", "--task", "text:text.txt", "-o", "new", "--plan", "none.json"], "No such file"),
        (["plan", "tiny", "--seed", "-1"], "--seed"),
        (["plan", "tiny", "--sed", "1"], "--seed"),
        (["nrrow"], "narrow"),
        (["doctor"], "MODEL"),
    ],
)
def test_refused_before_anything_is_opened(within: Path, capsys: Capture, arguments: list[str], words: str) -> None:
    assert words in refused(capsys, *arguments)


# What is refused as it is opened.


def test_no_such_network(within: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no-such-network" in refused(capsys, "doctor", "no-such-network")


def test_not_a_number_among_the_weights(within: Path, capsys: Capture, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    place = small.write_network(tmp_path / "nan")
    tensors = load_file(place / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][2, 3] = float("nan")
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    line = refused(capsys, "doctor", str(place))
    assert "encoder.layer.1.output.dense.weight" in line


def test_truncated_weights(within: Path, capsys: Capture, tmp_path: Path) -> None:
    place = small.write_network(tmp_path / "short")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(capsys, "doctor", str(place))


def test_damaged_artifact(within: Path, capsys: Capture, tmp_path: Path) -> None:
    from isthmus.storage.artifact import save_artifact
    from isthmus.storage.opening import open as open_network

    place = tmp_path / "artifact"
    save_artifact(open_network(within / "tiny"), place, {})
    weights = place / "model.safetensors"
    data = bytearray(weights.read_bytes())
    weights.write_bytes(data[:-8])
    assert "truncated" in refused(capsys, "doctor", str(place))
    data[-5] ^= 1
    weights.write_bytes(data)
    assert "changed" in refused(capsys, "doctor", str(place))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("text:missing.txt", "missing.txt"),
        ("txt:text.txt", "text"),
        ("sts:columns.csv", "columns.csv"),
        ("text:empty.txt", "empty"),
    ],
)
def test_tasks_that_are_refused(within: Path, capsys: Capture, task: str, words: str) -> None:
    (within / "columns.csv").write_text("left,right,colour\na,b,1\nc,d,2\n")
    (within / "empty.txt").write_text("")
    assert words in refused(capsys, "plan", "tiny", "--task", task, "--to", "params=50%")


def test_unknown_method(within: Path, capsys: Capture) -> None:
    line = refused(capsys, "plan", "tiny", "--task", "text:text.txt", "--to", "params=50%", "--method", "tailor")
    assert "taylor" in line


def test_unreachable_budget(within: Path, capsys: Capture) -> None:
    options_ = ["--task", "text:text.txt", "--to", "params=0.01%", "--method", "magnitude"]
    assert "params=" in refused(capsys, "plan", "tiny", *options_)


def test_output_folder_that_is_not_empty(within: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    out = str(tmp_path / "full")
    line = refused(capsys, "narrow", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", out)
    assert "not empty" in line
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


# Being stopped, and what nobody foresaw.


def raising(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("target", ["isthmus.doctor.diagnose", "isthmus.flow.narrow"])
def test_ctrl_c(within: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(target, raising(KeyboardInterrupt()))
    narrow = ["narrow", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", "new"]
    assert main(["doctor", "tiny"] if target.endswith("diagnose") else narrow) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["stopped"]
    assert not (within / "new").exists()


def test_sigterm_stops_like_ctrl_c(within: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    tidied = []

    def diagnose(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("isthmus.doctor.diagnose", diagnose)
    assert main(["doctor", "tiny"]) == 130
    assert capsys.readouterr().err.splitlines() == ["stopped"]
    assert tidied == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_disk(within: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")
    monkeypatch.setattr("isthmus.doctor.diagnose", raising(full))
    assert "model.safetensors: no space left" in refused(capsys, "doctor", "tiny")


def test_a_fault_of_ours_is_not_hidden(within: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.doctor.diagnose", raising(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        main(["doctor", "tiny"])


# What works.


def test_help_and_version(capsys: Capture) -> None:
    assert main([]) == 0
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("inspect", "plan", "narrow", "compare", "methods", "doctor", "demo"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("isthmus ")


def test_doctor(within: Path, capsys: Capture) -> None:
    assert main(["doctor", "tiny", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "checks passed" in out
    assert err == ""


def test_doctor_that_finds_something(within: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus.doctor import Check, Diagnosis

    rows = (Check("mask", "width", False, 0.5, 1e-5), Check("mask", "layers", True, 0.0, 1e-5))
    monkeypatch.setattr("isthmus.doctor.diagnose", lambda *_, **__: Diagnosis("tiny", rows))
    assert main(["doctor", "tiny", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"][0]["ok"] is False
    assert main(["doctor", "tiny"]) == 1
    assert "1 of 2 checks failed" in capsys.readouterr().out


def test_methods(capsys: Capture) -> None:
    assert main(["methods", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"random", "magnitude", "activation", "taylor", "fisher", "vib"} <= set(found)
    assert found["vib"]["slug"] == "vtrans"
    assert found["likeness"]["role"] == "measure"
    for row in found.values():
        assert (Path(__file__).parents[1] / "src" / row["file"]).exists()
        assert row["summary"].endswith(".")
    assert main(["methods"]) == 0
    assert "vtrans" in capsys.readouterr().out


def test_a_network_and_a_budget_are_enough(
    within: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (within / "text.txt").read_text().splitlines()
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    monkeypatch.setattr("isthmus.tasks.reading.documentation_passages", lambda: tuple(lines))
    monkeypatch.chdir(tmp_path)
    assert (
        main(["narrow", str(within / "tiny"), "--to", "params=60%", "--effort", "none", "--method", "magnitude"]) == 0
    )
    assert "--task text:FILE" in capsys.readouterr().err
    record = json.loads((tmp_path / "tiny-params-60" / "isthmus.json").read_text())
    assert record["task"]["name"] == "documentation"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("minilm", "bytes=5MB", None, None), "minilm-bytes-5MB"),
        (("some/folder/", None, "98%", None), "folder-keep-98"),
        (("cifar10-resnet20=a/b.safetensors", "macs=50%,bytes=1MB", None, None), "cifar10-resnet20-macs-50-bytes-1MB"),
        (("minilm", None, None, Path("a/mine.json")), "minilm-mine"),
    ],
)
def test_where_a_narrowed_network_goes(given: tuple[Any, ...], name: str) -> None:
    assert options.folder_for(None, *given) == Path(name)
    assert options.folder_for(Path("here"), *given) == Path("here")


def test_inspect_plan_narrow_compare(within: Path, capsys: Capture, tmp_path: Path) -> None:
    common = ["--task", "text:text.txt", "--method", "magnitude"]
    assert main(["inspect", "tiny", *common, "-o", str(tmp_path / "inspect.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert (tmp_path / "inspect.html").read_text().lstrip().lower().startswith("<!doctype html")

    assert main(["plan", "tiny", *common, "--to", "params=60%", "-o", str(tmp_path / "plan.json"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "plan.json").read_text())
    assert main(["plan", "tiny", *common, "--to", "params=60%", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert printed["decisions"]
    assert all(decision["site"] in out for decision in printed["decisions"])

    made = tmp_path / "made"
    assert (
        main(["narrow", "tiny", *common, "--plan", str(tmp_path / "plan.json"), "-o", str(made), "--time", "0.1s"]) == 0
    )
    told = " ".join(capsys.readouterr().out.split())
    assert "params" in told
    assert "s were asked for" in told, "what takes longer than it may says so"

    figures = tmp_path / "out.json"
    assert main(["compare", "tiny", str(made), "--task", "text:text.txt", "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())
    wanted = {
        "name",
        "params",
        "bytes",
        "macs",
        "latency_ms",
        "peak_bytes",
        "metric_name",
        "metric",
        "ci95",
        "relative",
    }
    assert all(wanted | {"engine", "batch", "length"} <= set(row) for row in rows)
    assert rows[1]["params"] <= 0.6 * rows[0]["params"]
    assert rows[0]["relative"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


# Options and progress.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("20min", 1200), ("1h", 3600), ("1.5 h", 5400), ("45", 45), ("2m", 120), (None, None)],
)
def test_times(text: str | None, seconds: float | None) -> None:
    assert options.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "0min", "5 days", "1h30"])
def test_times_that_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="20min"):
        options.seconds(text)


def test_progress_in_lines(capsys: Capture) -> None:
    lines = _Lines()
    for done in range(4):
        lines("gates", done, 3, f"loss {done}")
    lines("gates", 3, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "gates ..."
    assert err.splitlines()[1].startswith("gates: done in ")
    assert len(err.splitlines()) == 2


def test_progress_bars(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with reporting() as progress:
        progress("recovery", 1, 2, "loss [0.5]")
        progress("recovery", 2, 2)
    assert "recovery" in capsys.readouterr().err
    with reporting(quiet=True) as progress:
        progress("recovery", 1, 2)
    assert capsys.readouterr().err == ""
