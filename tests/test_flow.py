"""Whole runs: the same artifact from the same seed or plan, nothing lost when stopped, one line for a bad input."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import isthmus
import networks
import quick
import small
from isthmus.budget import parse_budget
from isthmus.cli.main import main
from isthmus.errors import BadInput, IsthmusError, UnreachableBudget
from isthmus.flow import efforts
from isthmus.flow.together import from_main
from isthmus.flow.verifying import changed_most, check_labels, hold_budget
from isthmus.network import Network, embed
from isthmus.plan import Plan, load_plan
from isthmus.recovery.recipe import Recipe
from isthmus.storage.artifact import verify_artifact
from isthmus.storage.weights import weight_bytes
from isthmus.tasks import load_task
from test_cli import refused

Capture = pytest.CaptureFixture[str]
NARROW = ["narrow", "tiny", "--task", "text:text.txt", "--effort", "faster", "-o", "made", "--quiet"]
ORDER = ["narrow", "tiny", "--task", "text:text.txt", "--to", "params=60%", "--effort", "faster", "--quiet"]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny network, a text, and an artifact of an undisturbed run."""
    place = tmp_path_factory.mktemp("flow")
    small.write_network(place / "tiny")
    small.write_text(place / "text.txt", 90)
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        quick.hurry(patch.setitem, patch.setattr)
        os.chdir(place)
        assert main([*ORDER, "-o", "undisturbed"]) == 0
    yield place
    os.chdir(before)


@pytest.fixture
def place(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own with the same tiny network and text."""
    shutil.copytree(shared / "tiny", tmp_path / "tiny")
    shutil.copy(shared / "text.txt", tmp_path / "text.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "isthmus.json").read_text())
    return found


# 2, 6. The same seed, the same plan: the same artifact.


def test_the_same_seed_gives_the_same_artifact(shared: Path, place: Path) -> None:
    assert main([*ORDER, "-o", "again"]) == 0
    assert digest(place / "again") == digest(shared / "undisturbed")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (place / "again" / name).read_bytes() == (shared / "undisturbed" / name).read_bytes()
    assert main([*ORDER, "--seed", "1", "-o", "other"]) == 0
    assert digest(place / "other") != digest(shared / "undisturbed")


def test_a_replayed_plan_gives_the_same_network(shared: Path, place: Path) -> None:
    plan = Plan.model_validate(record_of(shared / "undisturbed")["plan"])
    plan.save(place / "plan.json")
    network, task = isthmus.open("tiny"), isthmus.task("text:text.txt")
    made = isthmus.narrow(network, task, plan=load_plan("plan.json"), effort="faster", out="replayed")
    first, again = isthmus.open(shared / "undisturbed"), isthmus.open("replayed")
    weights = dict(again.model.named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in first.model.named_parameters())
    assert digest(place / "replayed") == digest(shared / "undisturbed")
    assert made.record["plan"] == record_of(shared / "undisturbed")["plan"]
    assert made.network.name == "replayed"
    assert made.network.source == Path("replayed")


def test_an_edited_plan_is_carried_out_and_predicted_anew(shared: Path, place: Path) -> None:
    """Whoever edits a plan need not work out what it then costs."""
    data = record_of(shared / "undisturbed")["plan"]
    # One neuron, for that is within the budget whatever the plan has kept of them on this machine.
    neurons = {"site": "layers.0.neurons", "kind": "neurons", "bottleneck": "hand", "units": 48, "keep": "0"}
    others = [decision for decision in data["decisions"] if decision["site"] != neurons["site"]]
    data["decisions"] = [*others, neurons]
    data["predicted"], data["original"] = {}, {}
    (place / "plan.json").write_text(json.dumps(data))
    assert (
        main(["narrow", "tiny", "--task", "text:text.txt", "--plan", "plan.json", "--effort", "faster", "-o", "made"])
        == 0
    )
    record = record_of(place / "made")
    assert record["plan"]["predicted"]["params"] == record["measurements"]["narrowed"]["params"]
    assert record["plan"]["predicted"]["bytes"] == weight_bytes(place / "made")
    assert record["plan"]["original"]["params"] == record["measurements"]["original"]["params"]


# 3, 5. What the record and the page say is what was measured.


def test_the_record(shared: Path) -> None:
    folder = shared / "undisturbed"
    record = verify_artifact(folder)
    original, narrowed = record["measurements"]["original"], record["measurements"]["narrowed"]
    assert narrowed["bytes"] == (folder / "model.safetensors").stat().st_size == record["plan"]["predicted"]["bytes"]
    assert original["bytes"] == weight_bytes(shared / "tiny")
    opened = isthmus.open(folder)
    assert narrowed["params"] == sum(parameter.numel() for parameter in opened.model.parameters())
    assert narrowed["params"] <= 0.6 * original["params"]
    assert narrowed["macs"] == record["plan"]["predicted"]["macs"]
    assert record["seed"] == 0
    assert record["recipe"]["steps"] == quick.STEPS
    assert {"isthmus", "torch", "transformers", "python"} <= set(record["versions"])
    assert record["task"]["fingerprint"] == isthmus.task(f"text:{shared / 'text.txt'}").fingerprint
    distortion = record["measurements"]["distortion"]
    assert set(distortion) == {"predicted", "measured_before_recovery", "measured_after_recovery"}
    decided = {decision["site"] for decision in record["plan"]["decisions"]}
    assert set(record["measurements"]["sites"]) == decided
    assert (folder / "report.html").read_text().count("<html") == 1
    left = {path.name for path in shared.iterdir()}
    assert left == {"tiny", "text.txt", "undisturbed"}, "stages are gone once the artifact is there"


def test_a_classifier_in_memory_with_labels_and_little_time(place: Path) -> None:
    original = networks.worded("distilbert-classifier")
    texts = small.sentences(80)
    task = isthmus.task(("classify", [(text, "short" if len(text) < 50 else "long") for text in texts]))
    network = isthmus.open(original.model, name="mine", tokenizer=original.tokenizer)
    made = isthmus.narrow(network, task, to="params=70%,macs=60%", method="fisher", effort="faster", time=1.0)
    assert made.record["recipe"]["steps"] == efforts.LEAST_STEPS, "no time at all still trains a little"
    assert made.record["recipe"]["labels"] > 0
    rows = made.record["measurements"]
    assert rows["narrowed"]["params"] <= 0.7 * rows["original"]["params"]
    assert rows["narrowed"]["macs"] <= 0.6 * rows["original"]["macs"]
    assert rows["narrowed"]["metric_name"] == "accuracy"
    made.save(place / "kept")
    again = isthmus.load(place / "kept")
    found, wanted = embed(again, texts[:8]), embed(made.network, texts[:8])
    assert torch.allclose(torch.from_numpy(found), torch.from_numpy(wanted), atol=1e-5)
    assert again.record["measurements"] == json.loads(json.dumps(rows))
    with pytest.raises(BadInput, match="not empty"):
        made.save(place / "kept")


def test_a_floor(place: Path) -> None:
    """The smallest that holds a share of the quality; the trail of the search is in the plan."""
    sides = small.sentences(80)
    pairs = [(left, right, len(left) % 6) for left, right in zip(sides[::2], sides[1::2], strict=True)]
    task = isthmus.task(("sts", pairs))
    plan = isthmus.plan(networks.worded("mpnet"), task, keep="20%", method="magnitude")
    assert plan.predicted["params"] < plan.original["params"]
    assert any(note.startswith("floor:") for note in plan.notes)
    assert parse_budget(plan.budget).currencies == ("params",)


def test_bytes_of_an_original_in_half_precision(place: Path) -> None:
    """A share of the bytes is a share of the file that is there, whatever its precision."""
    from transformers import AutoModel

    AutoModel.from_pretrained("tiny", dtype=torch.float16).save_pretrained("tiny")
    before = weight_bytes("tiny")
    plan = isthmus.plan(isthmus.open("tiny"), isthmus.task("text:text.txt"), to="bytes=90%", method="magnitude")
    assert plan.original["bytes"] == before
    assert plan.predicted["bytes"] <= 0.9 * before
    order = ["narrow", "tiny", "--task", "text:text.txt", "--to", "bytes=90%", "--method", "magnitude"]
    assert main([*order, "--effort", "faster", "-o", "made"]) == 0
    assert weight_bytes("made") <= 0.9 * before


# 7. Stopped at any point, nothing is lost.


class Stop(Exception):
    """Thrown in the middle of the work."""


def stopping(stage: str, after: int) -> Callable[..., None]:
    calls = 0

    def progress(name: str, done: int, total: int, note: str = "") -> None:
        nonlocal calls
        calls += name == stage
        if name == stage and calls > after:
            raise Stop(stage)

    return progress


def test_stopped_in_every_stage(shared: Path, place: Path) -> None:
    """One run, stopped nine times and resumed each time, ends with the artifact of an undisturbed run."""
    network, task = isthmus.open("tiny"), isthmus.task("text:text.txt")
    stages = place / ".made.stages"

    def run(resume: bool = True, **changes: Any) -> Any:
        return isthmus.narrow(network, task, to="params=60%", effort="faster", out="made", resume=resume, **changes)

    moments = [("vocabulary", 0), ("gates", 1), ("allocate", 0), ("allocate", 1), ("cut", 0), ("recover", 5)]
    for stage, after in [*moments, ("recover", 11), ("bench", 0), ("quality", 1)]:
        with pytest.raises(Stop, match=stage):
            run(progress=stopping(stage, after))
        assert not (place / "made").exists()
        assert not list(place.glob("**/.*.partial"))
        if stage in ("vocabulary", "gates", "allocate"):
            assert not stages.exists(), "nothing is kept before something is decided"
        else:
            assert (stages / "plan.stage.json").exists()
    kept = everything(stages)
    assert "recovery.stage.json" in kept
    for name, data in kept.items():
        assert name.endswith((".json", ".safetensors", ".txt", ".html")), name
        assert not data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    with pytest.raises(BadInput, match=r"seed was 0 .* is 3 now"):
        run(seed=3)
    with pytest.raises(BadInput, match="method"):
        run(method="fisher")
    assert everything(stages) == kept, "a refusal leaves what can be resumed"
    run()
    assert digest(place / "made") == digest(shared / "undisturbed")
    assert not stages.exists()


def test_without_resume_it_starts_again(shared: Path, place: Path) -> None:
    network, task = isthmus.open("tiny"), isthmus.task("text:text.txt")
    with pytest.raises(Stop):
        isthmus.narrow(network, task, to="params=50%", effort="faster", out="made", progress=stopping("recover", 3))
    seen: list[str] = []
    isthmus.narrow(
        network, task, to="params=60%", effort="faster", out="made", progress=lambda name, *_: seen.append(name)
    )
    assert "gates" in seen
    assert digest(place / "made") == digest(shared / "undisturbed")


def killed(place: Path, moment: str, times: int, *arguments: str) -> None:
    """Run the command in a process of its own and kill it, without warning, at a moment."""
    marker = place.parent / f"{place.name}-{moment}"
    command = [sys.executable, str(Path(__file__).with_name("quick.py")), str(marker), moment, str(times), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 600
    while not marker.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.slow
def test_killed_and_resumed(shared: Path, place: Path) -> None:
    """Killed once decided, in the middle of recovery, with half an artifact written, and while it was measured."""
    stages = place / ".made.stages"
    order = [*ORDER, "-o", "made"]

    killed(place, "isthmus.flow.recovering.cut", 1, *order)
    assert (stages / "plan.stage.json").exists()
    assert not (stages / "recovery.stage.json").exists()

    killed(place, "isthmus.recovery.train.save_state", quick.STEPS // 2, *order, "--resume")
    state = json.loads((stages / "recovery.stage.json").read_text())
    assert state["key"] == json.loads((stages / "plan.stage.json").read_text())["key"]
    assert not (stages / "artifact").exists()

    killed(place, "isthmus.storage.artifact._write_network", 1, *order, "--resume")
    assert (stages / ".artifact.partial" / "model.safetensors").exists()
    assert not (stages / "artifact").exists()

    assert sorted(path.name for path in place.iterdir()) == [".made.stages", "text.txt", "tiny"]
    assert main([*order, "--resume"]) == 0
    assert digest(place / "made") == digest(shared / "undisturbed")
    assert sorted(path.name for path in place.iterdir()) == ["made", "text.txt", "tiny"]


# Several processes.


@pytest.mark.slow
def test_two_processes_write_one_artifact(place: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launch, str(Path(__file__).with_name("quick.py")), "none", "none", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    small.write_text(place / "text.txt", 300)  # at least a batch for each process
    order = [*ORDER, "--method", "magnitude", "-o", "made"]
    ran = subprocess.run(
        [*command, *order], cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr
    record = verify_artifact(place / "made")
    assert record["measurements"]["narrowed"]["bytes"] == weight_bytes("made")
    assert sorted(path.name for path in place.iterdir()) == ["made", "text.txt", "tiny"]
    assert embed(isthmus.open("made"), ["a narrow strip"]).shape[0] == 1


def test_alone_the_main_process_does_it() -> None:
    assert from_main(lambda: 3) == 3
    with pytest.raises(IsthmusError, match="no"):
        from_main(lambda: (_ for _ in ()).throw(IsthmusError("no")))


# 8. A bad input gets one line and leaves nothing.


def edited(plan: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**plan, "decisions": [{**STREAM, **changes}]}


STREAM = {"site": "width", "kind": "width", "bottleneck": "hand", "units": 32, "keep": "0-15"}
TOKENS = {"site": "vocabulary", "kind": "vocabulary", "bottleneck": "hand", "units": 200, "keep": "7-199"}
PLANS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no JSON": (lambda plan: json.dumps(plan)[:-20], "not JSON"),
    "a list": (lambda plan: [plan], "plan"),
    "later": (lambda plan: {**plan, "version": 99}, "newer"),
    "another field": (lambda plan: {**plan, "colour": "red"}, "colour"),
    "other weights": (lambda plan: {**plan, "fingerprint": "0" * 64}, "other weights"),
    "unknown site": (lambda plan: edited(plan, site="breadth"), "breadth"),
    "out of range": (lambda plan: edited(plan, keep="0-40"), "width"),
    "not rising": (lambda plan: edited(plan, keep="4,3"), "width"),
    "nothing kept": (lambda plan: edited(plan, keep=""), "width"),
    "a huge range": (lambda plan: edited(plan, keep="0-99999999999"), "too long"),
    "other units": (lambda plan: edited(plan, units=64, keep="0-63"), "width"),
    "special tokens": (lambda plan: {**plan, "decisions": [TOKENS]}, "must stay"),
    "above its budget": (lambda plan: edited(plan, keep="0-30"), "above its own budget"),
    "no budget": (lambda plan: {**plan, "budget": "beauty=50%"}, "beauty"),
}


def test_an_edited_plan_is_carried_out(shared: Path, place: Path, capsys: Capture) -> None:
    """What the refusals below are edits of is itself a good plan."""
    (place / "plan.json").write_text(json.dumps(edited(record_of(shared / "undisturbed")["plan"])))
    assert main([*NARROW, "--plan", "plan.json"]) == 0
    assert "network: made" in capsys.readouterr().out


@pytest.mark.parametrize("case", PLANS)
def test_plans_that_are_refused(case: str, shared: Path, place: Path, capsys: Capture) -> None:
    change, words = PLANS[case]
    changed = change(record_of(shared / "undisturbed")["plan"])
    (place / "plan.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    capsys.readouterr()
    assert words in refused(capsys, *NARROW, "--plan", "plan.json")


@pytest.mark.parametrize(
    "option", [("method", "random"), ("codes", "comq"), ("sites", "heads"), ("precision", "w8a8"), ("activations", "4")]
)
def test_what_a_plan_decides_is_not_asked_beside_it(
    option: tuple[str, str], shared: Path, place: Path, capsys: Capture
) -> None:
    (place / "plan.json").write_text(json.dumps(record_of(shared / "undisturbed")["plan"]))
    said = refused(capsys, *NARROW, "--plan", "plan.json", f"--{option[0]}", option[1])
    assert f"{' '.join(option)}: the plan decides that" in said


BAD: dict[str, tuple[list[str], str]] = {
    "twice the same currency": ([*NARROW, "--to", "params=50%,params=40%"], "twice"),
    "an empty budget": ([*NARROW, "--to", ""], "currency=value"),
    "below zero": ([*NARROW, "--to", "params=-5%"], "params"),
    "not a number": ([*NARROW, "--to", "bytes=nan"], "bytes"),
    "no unit": ([*NARROW, "--to", "latency=5"], "latency"),
    "above the original": ([*NARROW, "--to", "bytes=999GB"], "costs only"),
    "nothing can be that small": ([*NARROW, "--to", "macs=1", "--method", "random"], "ask for at least"),
    "no floor": ([*NARROW, "--keep", "0%"], "share"),
    "two goals": ([*NARROW, "--keep", "98%", "--plan", "plan.json"], "more than one"),
    "a floor in another precision": ([*NARROW, "--keep", "98%", "--precision", "w8a8"], "searched over units alone"),
    "a floor with coders": ([*NARROW, "--keep", "98%", "--codes", "comq"], "searched over units alone"),
    "a floor with rounded activations": ([*NARROW, "--keep", "98%", "--activations", "4"], "over units alone"),
    "a method nobody knows": ([*NARROW, "--to", "params=50%", "--method", "fischer"], "fisher"),
    "an output that is a file": (
        ["narrow", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", "text.txt"],
        "is a file",
    ),
    "an output below a file": (
        ["narrow", "tiny", "--task", "text:text.txt", "--to", "params=50%", "-o", "text.txt/x/made"],
        "text.txt",
    ),
    "a network that is a file": (["doctor", "text.txt"], "text.txt"),
    "a folder without a network": (["doctor", "empty"], "config.json"),
    "no words to learn from": (
        ["narrow", "tiny", "--task", "text:one.txt", "--to", "params=50%", "-o", "made"],
        "one.txt",
    ),
    "an empty folder": (["plan", "tiny", "--task", "text:empty", "--to", "params=50%"], "empty"),
    "labels for an encoder": (["plan", "tiny", "--task", "classify:text.txt", "--to", "params=50%"], "text.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_inputs_that_are_refused(case: str, place: Path, capsys: Capture) -> None:
    (place / "empty").mkdir()
    (place / "one.txt").write_text("a single line\n")
    (place / "plan.json").write_text("{}")
    before = everything(place)
    capsys.readouterr()
    arguments, words = BAD[case]
    assert words in refused(capsys, *arguments)
    assert everything(place) == before


# The parts of verification.


def row(**figures: float) -> dict[str, float]:
    return {"params": 100, "bytes": 400, "macs": 1000, "latency_ms": 8.0, **figures}


def test_a_budget_is_held_against_what_was_measured() -> None:
    budget = parse_budget("params=50%,latency=4ms")
    verdict = hold_budget(budget, row(), row(params=50, latency_ms=4.0))
    assert verdict.limits == {"params": 50, "latency": 4}
    assert verdict.measured == {"params": 50, "latency": 4}
    for figures in ({"params": 51, "latency_ms": 3}, {"params": 20, "latency_ms": 4.1}):
        with pytest.raises(UnreachableBudget, match=r"run again with \w+=[\d.]+%"):
            hold_budget(budget, row(), row(**figures))


def test_classes_in_another_order_are_refused() -> None:
    task = load_task(("classify", [(text, "ab"[n % 2]) for n, text in enumerate(small.sentences(40))]))
    network = networks.worded("bert-classifier")
    check_labels(network, task)
    network.model.config.id2label = {0: "a", 1: "b"}
    check_labels(network, task)
    network.model.config.id2label = {0: "b", 1: "a"}
    with pytest.raises(BadInput, match="order"):
        check_labels(network, task)


def test_the_examples_that_changed_most() -> None:
    texts = small.sentences(40)
    original, other = networks.worded("bert"), networks.worded("bert", seed=1)
    task = load_task(("text", texts))
    rows = changed_most(original, other, task, count=3)
    changes = [abs(row_["original"] - row_["narrowed"]) for row_ in rows]
    assert len(rows) == 3
    assert changes == sorted(changes, reverse=True)
    assert all(row_["original"] == row_["narrowed"] for row_ in changed_most(original, original, task))
    held = embed(original, [rows[0]["text"], rows[0]["text2"]])
    assert rows[0]["original"] == pytest.approx(float(held[0] @ held[1]), abs=1e-4)


# The parts of efforts.


def test_recovery_fits_into_the_time() -> None:
    recipe = Recipe(steps=1000, learning_rate=1e-3)
    assert efforts.with_steps(recipe, 5000).steps == 1000
    assert efforts.with_steps(recipe, 0).steps == efforts.LEAST_STEPS
    short = efforts.with_steps(recipe, 100)
    assert (short.steps, short.warmup, short.evaluate_every) == (100, 10, 10)
    assert efforts.steps_within((0.1, 0.1), 10.0, epoch=1000) == 50, "the teacher is asked in every step"
    assert efforts.steps_within((0.1, 0.1), 10.0, epoch=20) == 20 + 60, "and after the first pass no more"
    assert efforts.steps_within((0.1, 0.1), -5.0, epoch=20) <= 0


def test_efforts() -> None:
    rates = [efforts.recipe_for("fast", share).learning_rate for share in (0.95, 0.75, 0.5, 0.25, 0.1, 0.05)]
    assert rates == sorted(rates)
    assert efforts.recipe_for("fast", 1.0).learning_rate == pytest.approx(efforts.WHOLE_RATE)
    assert rates[2] == pytest.approx(efforts.HALF_RATE)
    assert rates[-1] == pytest.approx(1e-3)
    steps = [efforts.recipe_for("fast", share).steps for share in (0.9, 0.5, 0.25, 0.125, 0.01)]
    most = efforts.STEPS["fast"]
    assert steps == [most, most, 2 * most, 4 * most, 4 * most], "cheaper steps, and more of them"
    assert efforts.recipe_for("fast", 0.5, classifier=True).learning_rate < rates[2]
    with pytest.raises(BadInput, match="efforts are"):
        efforts.recipe_for("fastest", 0.5)


def test_one_goal() -> None:
    network: Network = networks.worded("bert")
    task = load_task(("text", small.sentences(40)))
    for goals in ({}, {"to": "params=50%", "keep": "98%"}):
        with pytest.raises(IsthmusError, match="give one of"):
            isthmus.plan(network, task, **goals)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no networks"):
        isthmus.compare([], task)
    with pytest.raises(BadInput, match="two networks are called"):
        isthmus.compare([network, replace(network)], task)
    assert re.fullmatch(r"[0-9a-f]{64}", task.fingerprint)
