"""`isthmus tokens`: from a network and a line of text to an artifact that was measured, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import networks
import pictured
import small
from isthmus import flow
from isthmus.bottlenecks.tokens.narrowing import narrow_tokens
from isthmus.cli.main import main
from isthmus.errors import BadInput
from isthmus.flow import tokens as token_flow
from isthmus.flow import untrained
from isthmus.plan import Plan
from isthmus.storage.artifact import read_record, verify_artifact
from isthmus.tasks import load_task
from tokened import WHERE, network_of, policy


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the engine: what it measures is tested elsewhere, and takes long."""

    def rows(given: list[Any], *_: Any, **__: Any) -> list[dict[str, Any]]:
        return [{"name": network.name} for network in given]

    monkeypatch.setattr(untrained, "compare_networks", rows)


@pytest.mark.usefixtures("unmeasured")
def test_a_budget_of_macs_becomes_an_artifact(tmp_path: Path) -> None:
    network = networks.worded("bert")
    task = load_task(("text", small.sentences(60)))
    made = token_flow.narrow_by_tokens(network, task, "similarity:merge:macs=80%", tmp_path / "small")
    assert made.plan.predicted["macs"] <= 0.8 * made.plan.original["macs"]
    assert made.plan.predicted["macs"] >= 0.65 * made.plan.original["macs"]
    record = verify_artifact(tmp_path / "small")
    assert Plan.model_validate(record["plan"]) == made.plan
    assert {decision.kind for decision in made.plan.decisions} == {"tokens"}
    assert record["measurements"]["narrowed"]["name"] == "bert similarity:merge:macs=80%"
    # What was narrowed so is not narrowed further.
    with pytest.raises(BadInput, match="narrowed already"):
        token_flow.narrow_by_tokens(made.network, task, "random:drop:share=50%@0", tmp_path / "more")
    with pytest.raises(BadInput, match="which comes last"):
        flow.inspect(made.network, task)


@pytest.mark.usefixtures("unmeasured")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = small.write_text(tmp_path / "text.txt", 40)
    folder, out = small.write_network(tmp_path / "bert"), tmp_path / "small"
    given = ["tokens", str(folder), "--task", f"text:{text}", "--policy", "received-attention:drop:share=60%@0"]
    assert main([*given, "-o", str(out), "--json", "-q"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in shown["networks"]] == ["bert", "bert received-attention:drop:share=60%@0"]
    plan = Plan.model_validate(read_record(out)["plan"])
    assert plan == Plan.model_validate(shown["plan"])
    assert plan.predicted["macs"] < plan.original["macs"]
    assert main([*given, "-o", str(out), "-q"]) == 2
    assert "the folder is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("class-attention:drop:share=0%@0", "none of an example's would stay"),
        ("class-attention:drop:macs=0%", "give one between 0 and 100%"),
        ("class-attention:drop:hours=3", "unknown schedule of tokens"),
        ("class-attention", "cannot be read"),
    ],
)
def test_what_is_refused(spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_flow, "tokens_of", lambda network: WHERE["vit"])
    with pytest.raises(BadInput, match=said):
        token_flow.narrow_by_tokens(network_of("vit"), pictured.pictures_task(60), spec, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_other_ways_to_narrow_come_before(tmp_path: Path) -> None:
    small_network = narrow_tokens(network_of("vit"), policy("random:drop:share=50%@0"), WHERE["vit"])
    with pytest.raises(BadInput, match="which comes last"):
        flow.inspect(small_network, pictured.pictures_task(60))
