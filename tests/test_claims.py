"""Claims: what is concluded from results, and the page written from them; on made-up results only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from claims import vtrans
from claims.__main__ import CLAIMS, PAGE, RESULTS, main
from claims.attention import closed_against_kept, closed_shares
from claims.common import Ledger, Point, point_of, points_for, run_points
from claims.data import encoder_task, why_not
from claims.tables import read_results, render, score, score_table, write_table
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, attention, budget, check_equal, efforts, judge, ordering

from isthmus.errors import BadInput
from isthmus.tasks.data import data_folder

ORIGINAL = 1000
SHARES = (0.75, 0.5, 0.25, 0.1)
LAYERS, HEADS = 3, 4


def outcome(method: str, share: float, seed: int, relative: float, effort: str = "", **more: Any) -> dict[str, Any]:
    """Return a made-up outcome."""
    return {
        "method": method,
        "effort": effort,
        "share": share,
        "seed": seed,
        "params": int(share * ORIGINAL),
        "original_params": ORIGINAL,
        "embedding_params": int(share * ORIGINAL / 2),
        "relative": relative,
        "before": 1.0,
        "after": 0.5,
        "seconds": {"relevance": 10.0, "allocation": 1.0, "recovery": 5.0},
        "heads": {"0": [0, 1, 2], "1": [1, 2, 3], "2": [0, 1, 2, 3]},
        **more,
    }


def results(vib: dict[float, float] | None = None) -> list[dict[str, Any]]:
    """Return outcomes in which everything holds, with other means of the gates where they are given."""
    rows = []
    for seed, off in enumerate((-0.01, 0.0, 0.01)):
        for share in SHARES:
            mean = (vib or {}).get(share, 0.95)
            rows.append(outcome("vib", share, seed, mean + off / 10, "faster"))
            rows.append(outcome("random", share, seed, 0.80 + off))
            rows.append(outcome("fisher", share, seed, 0.94 + off))
        slow = {"relevance": 60.0, "allocation": 1.0, "recovery": 5.0}
        rows.append(outcome("vib", 0.5, seed, 0.96, "full", seconds=slow))
    return rows


def masses(closed: float = 0.9, kept: float = 0.5) -> dict[str, Any]:
    """Return attention in which the two closed heads (0.3 and 1.0) stand out."""
    special = np.full((LAYERS, HEADS), kept)
    special[0, 3] = special[1, 0] = closed
    return {"special": special.tolist(), "current": np.full((LAYERS, HEADS), 0.05).tolist()}


def test_ordering_holds() -> None:
    part = ordering(results(), "faster")
    assert part["verdict"] == HOLDS
    assert part["figures"]["0.25"]["best"] == "fisher"
    assert part["figures"]["0.25"]["best_spread"] == pytest.approx(0.01)


def test_ordering_allows_the_spread_of_the_best_above_a_quarter_only() -> None:
    behind = ordering(results({0.75: 0.935, 0.5: 0.935}), "faster")
    assert behind["verdict"] == HOLDS
    tied = ordering(results({0.25: 0.935}), "faster")
    assert tied["verdict"] == MIXED
    assert not tied["figures"]["0.25"]["met"]
    far = ordering(results(dict.fromkeys(SHARES, 0.5)), "faster")
    assert far["verdict"] == FAILS


def test_ordering_is_untested_without_others() -> None:
    rows = [row for row in results() if row["method"] == "vib"]
    assert ordering(rows, "faster")["verdict"] == UNTESTED


@pytest.mark.parametrize(("params", "verdict"), [(250, HOLDS), (245, HOLDS), (244, MIXED), (251, MIXED)])
def test_budget(params: int, verdict: str) -> None:
    rows = results()
    next(row for row in rows if row["share"] == 0.25 and row["method"] == "vib")["params"] = params
    assert budget(rows)["verdict"] == verdict


@pytest.mark.parametrize(
    ("seconds", "full", "verdict"), [(60.0, 0.96, HOLDS), (40.0, 0.96, MIXED), (60.0, 0.99, MIXED), (40.0, 0.99, FAILS)]
)
def test_efforts(seconds: float, full: float, verdict: str) -> None:
    rows = [row for row in results() if row["effort"] != "full"]
    slow = {"relevance": seconds, "allocation": 1.0, "recovery": 5.0}
    part = efforts([*rows, outcome("vib", 0.5, 0, full, "full", seconds=slow)])
    assert part["verdict"] == verdict
    assert efforts(rows)["verdict"] == UNTESTED


def test_attention() -> None:
    rows = results()
    part = attention(rows, masses())
    assert part["verdict"] == HOLDS
    assert part["figures"]["both"]["closed"] == pytest.approx(0.95)
    assert attention(rows, masses(closed=0.1))["verdict"] == FAILS
    assert attention(rows, None)["verdict"] == UNTESTED


def test_attention_by_chance_is_mixed() -> None:
    rng = np.random.default_rng(3)
    special = rng.uniform(size=(LAYERS, HEADS))
    special[0, 3] = special[1, 0] = special.mean() + 0.01
    part = attention(results(), {"special": special.tolist(), "current": np.zeros((LAYERS, HEADS)).tolist()})
    assert part["verdict"] == MIXED


def test_closed_shares() -> None:
    closed = closed_shares([{"0": [0, 1], "1": [0]}, {"0": [0]}], 3, 2)
    np.testing.assert_allclose(closed, np.array([[0, 0.5], [0, 1], [np.nan, np.nan]]))
    assert "difference" not in closed_against_kept(np.ones((1, 2)), np.zeros((1, 2)))


def test_points_of_different_size_are_not_compared() -> None:
    rows = results()
    rows[0]["params"] -= 5
    with pytest.raises(BadInput, match="must be equal"):
        check_equal(rows)


def test_verdict() -> None:
    assert judge(results(), masses(), effort="faster", complete=True)["verdict"] == HOLDS
    assert judge(results(), masses(), effort="faster", complete=False)["verdict"] == "unfinished"
    assert judge(results(), None, effort="faster", complete=True)["verdict"] == "unfinished"
    assert judge(results({0.25: 0.9}), masses(), effort="faster", complete=True)["verdict"] == MIXED
    worst = results(dict.fromkeys(SHARES, 0.5))
    assert judge(worst, masses(), effort="faster", complete=True)["verdict"] == FAILS


def test_points_are_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "claim.json"
    head: dict[str, Any] = {"slug": "claim", "record": {"steps": 3, "data": "d"}}
    asked: list[Point] = []

    def measure(point: Point) -> dict[str, Any]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(point)
        return outcome(point.method, point.share, point.seed, 0.9, point.effort)

    def ledger(record: dict[str, Any]) -> Ledger:
        return Ledger(path, {**head, "record": record}, lambda found: {"verdict": len(found)})

    points = points_for(["vib", "random"], [0.5, 0.25], [0], "faster")
    assert [point.label for point in points] == ["vib faster", "random", "vib faster", "random"]
    with pytest.raises(KeyboardInterrupt):
        run_points(points, ledger(head["record"]), measure, lambda _: None)
    assert json.loads(path.read_text())["verdict"] == 2
    run_points(points, ledger(head["record"]), lambda point: outcome(*_args(point)), lambda _: None)
    found = json.loads(path.read_text())
    assert [point_of(row) for row in found["points"]] == points
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(BadInput, match="another steps"):
        ledger({"steps": 4, "data": "d"})


def _args(point: Point) -> tuple[str, float, int, float, str]:
    return point.method, point.share, point.seed, 0.9, point.effort


def test_score_table() -> None:
    table = score_table(results())
    assert table.splitlines()[0] == (
        "| method | 75% of the parameters | 50% of the parameters | 25% of the parameters | 10% of the parameters |"
    )
    assert "| `fisher` | 94.0 ± 1.0 | 94.0 ± 1.0 |" in table
    assert "**95.0 ± 0.1**" in table
    assert str(score([0.5])) == "50.0"


def test_page(tmp_path: Path) -> None:
    record = {"versions": {"isthmus": "0"}, "network": "n" * 64, "data": "d" * 64, "steps": 3}
    concluded = judge(results(), masses(), effort="faster", complete=True)
    result = {
        "slug": "vtrans", "claim": "A claim.", "experiment": "An experiment.", "record": record,
        **concluded, "points": results(),
    }  # fmt: skip
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "vtrans.json").write_text(json.dumps(result))
    (tmp_path / "results" / "other.json").write_text("[1]")
    page = tmp_path / "claims.md"
    write_table(tmp_path / "results", page)
    text = page.read_text()
    assert "## vtrans: holds" in text
    assert text.count("| holds |") == 5
    write_table(tmp_path / "results", page)
    assert page.read_text() == text
    assert "None has been tested" in render([])


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(read_results(RESULTS)), "run python -m claims --table"


def test_unknown_claim_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vtran"]) == 2
    assert capsys.readouterr().err == f"unknown claim 'vtran'; the claims are {', '.join(CLAIMS)}\n"


@pytest.mark.skipif(why_not(*vtrans.NEEDS) is not None, reason=str(why_not(*vtrans.NEEDS)))
def test_what_is_chosen_on_validation_pairs_never_sees_the_dev_set() -> None:
    folder = data_folder()
    assert folder is not None
    judged, chosen = encoder_task(folder), encoder_task(folder, validation=True)
    dev = set(judged.held_out.passages)
    assert not dev & {*judged.train, *chosen.train}
    assert not set(chosen.held_out.passages) & set(chosen.train)
    assert len(chosen.held_out.scores) == 1000
    assert set(chosen.held_out.passages) <= set(judged.train)
    assert not judged.pairs
    assert not chosen.pairs


def test_runs_side_by_side_are_joined(tmp_path: Path) -> None:
    whole = json.loads((RESULTS / "vtrans.json").read_text())
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        points = [point for point in whole["points"] if point["seed"] == seed]
        (tmp_path / name / "vtrans.json").write_text(json.dumps({**whole, "points": points}))
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for _ in range(2):  # a second time adds nothing
        assert main(["--join", *folders, "--out", str(tmp_path / "out")]) == 0
        joined = json.loads((tmp_path / "out" / "vtrans.json").read_text())
        known = [point for point in whole["points"] if point["seed"] in (0, 1)]
        assert sorted(map(json.dumps, joined["points"])) == sorted(map(json.dumps, known))
    (tmp_path / "b" / "vtrans.json").write_text(json.dumps({**whole, "record": {**whole["record"], "steps": 1}}))
    assert main(["--join", *folders, "--out", str(tmp_path / "out")]) == 2
    assert main(["--join", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2


def test_missing_data_says_why_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISTHMUS_DATA", "/nowhere")
    assert main(["vtrans", "--quick"]) == 2
    assert "skipped, no folder of data: set ISTHMUS_DATA" in capsys.readouterr().err
