"""The benchmark of families: what each may use, and what is concluded; measured on a tiny network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.families import FAMILIES, JOINT, Bench, Point, conclude, run, section

import quick
import small
from isthmus.errors import BadInput
from isthmus.storage.weights import weight_bytes
from isthmus.tasks import load_task


def outcome(family: str, relative: float, nats: float, budget: str = "5MB") -> dict[str, Any]:
    """Return a made-up outcome."""
    return {
        "family": family, "budget": budget, "effort": "none", "relative": relative, "nats": nats, "bytes": 5_000_000,
        "params": 20_000_000,
    }  # fmt: skip


def test_the_joint_plan_is_held_against_the_best_family() -> None:
    refused = {"family": "rank", "budget": "5MB", "effort": "none", "refused": "bytes: no"}
    found = conclude([outcome(JOINT, 0.98, 0.1), outcome("bits", 0.97, 0.2), outcome("codebook", 0.96, 0.15), refused])
    assert found["leads"] == {
        "5MB none": {"best": "bits", "points": pytest.approx(1.0), "error": None, "nats": pytest.approx(1.5)},
    }
    assert found["behind"] == []
    assert found["ahead"]
    assert found["ahead_in_nats"]
    assert not conclude([outcome(JOINT, 0.98, 0.1), outcome("bits", 0.97, 0.09)])["ahead_in_nats"]
    assert not conclude([outcome(JOINT, 0.97, 0.1), outcome("bits", 0.97, 0.2)])["ahead"], "a tie is not ahead"
    assert not conclude([outcome(JOINT, 0.97, 0.1), refused])["ahead"], "nothing to be ahead of"
    for error, behind in ((0.1, ["5MB none"]), (0.3, [])):
        other = {**outcome("bits", 0.97, 0.2), "joint_lead": {"points": -0.5, "error": error}}
        assert conclude([outcome(JOINT, 0.965, 0.1), other])["behind"] == behind
    record = {"families": {JOINT: ["deepcabac", "units"]}}
    text = "\n".join(section({"points": [outcome(JOINT, 0.98, 0.1), refused], "record": record, **found}))
    assert "| 5MB none | bits | +1.00 | 1.50 |" in text
    assert "Ahead in score everywhere: yes; in nats: yes" in text
    assert "| 5MB | none | joint | 5.00 | 20.0 | 0.100 | 98.0% |" in text
    assert "| 5MB | none | rank | not reached |" in text


def test_families_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    monkeypatch.setattr("benchmarks.families.KEPT", tmp_path / "curves")
    folder = small.write_network(tmp_path / "tiny")
    texts = small.sentences(80)
    rows = [f"{a}\t{b}\t{number % 5}" for number, (a, b) in enumerate(zip(texts[:40], texts[40:], strict=True))]
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    bench = Bench(
        str(folder), load_task(f"sts:{tmp_path / 'pairs.tsv'}"), method="magnitude", seed=0, say=lambda _: None
    )
    limit = 0.13 * weight_bytes(folder)
    for family in (JOINT, "bits"):
        found = bench.measure(Point(family, f"{limit / 1e6:.6f}MB", "none"))
        assert 0.95 * limit <= found["bytes"] <= limit, family
        assert set(found["coders"]) <= set(FAMILIES[family].codes)
        if family == "bits":
            assert found["params"] == sum(p.numel() for p in bench.network.model.parameters()), "no unit went"
        if family == "bits":
            assert found["joint_lead"]["error"] > 0
    assert "ask for" in bench.measure(Point("rank", "0.001MB", "none"))["refused"]
    assert set(bench.measured) == set(FAMILIES[JOINT].codes), "each coder is measured once"
    monkeypatch.setattr("benchmarks.families.curves_of", lambda *_: pytest.fail("measured again"))
    again = Bench(
        str(folder), load_task(f"sts:{tmp_path / 'pairs.tsv'}"), method="magnitude", seed=0, say=lambda _: None
    )
    assert again.curves(FAMILIES[JOINT].codes) == bench.curves(FAMILIES[JOINT].codes), "what was measured is read"


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown 'bit'"):
        run(tmp_path / "families.json", model="minilm", families=["bit"])
