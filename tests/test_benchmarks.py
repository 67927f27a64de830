"""Benchmarks: what is concluded from figures, and the page written from them; on made-up results only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import CLAIMS, PAGE, RESULTS, ROOT, main
from benchmarks.page import headline, render, write_page, write_readme
from benchmarks.reach import jobs_for, run_measured, targets
from benchmarks.torch_pruning import conclude, wanted_points

from isthmus.errors import BadInput, IsthmusError


def job(
    to: str, effort: str, relative: float, *, latency: float = 0.5, seconds: float = 200.0, whole: float | None = None
) -> dict[str, Any]:
    """Return a made-up job of the benchmark ``reach``; ``whole`` is the latency of the whole network in integers."""
    row = {"params": 100, "bytes": 100_000_000, "latency_ms": 10.0, "relative": 1.0}
    narrowed = {"params": 50, "bytes": 50_000_000, "latency_ms": 10.0 * latency, "relative": relative}
    rows = [row, narrowed] if whole is None else [row, narrowed, {**row, "latency_ms": 10.0 * whole}]
    return {"to": to, "effort": effort, "seconds": seconds, "peak_bytes": 1_200_000_000, "rows": rows}


def jobs(**more: dict[str, Any]) -> dict[str, Any]:
    """Return jobs that meet every target, with others in place of some."""
    return {
        "half-faster": job("params=50%", "faster", 0.975),
        "half-full": job("params=50%", "full", 0.99, seconds=2000.0),
        "quarter-full": job("params=25%", "full", 0.96),
        "tenth-full": job("params=10%", "full", 0.86),
        "latency-full": job("latency=50%", "full", 0.98, latency=0.499),
        "12mb-none": job("bytes=12MB", "none", 0.999, seconds=170.0),
        "8mb-faster": job("bytes=8MB", "faster", 0.996),
        "5mb-fast": job("bytes=5MB", "fast", 0.99, seconds=3500.0),
        "3mb-fast": job("bytes=3MB", "fast", 0.97),
        "quarter-latency-faster": job("latency=25% --precision w8a8", "faster", 0.98, latency=0.24, whole=0.48),
        "latency-18-faster": job("latency=18% --precision w8a8", "faster", 0.98, latency=0.17, whole=0.4),
        **more,
    }


def outcomes(theirs: float) -> list[dict[str, Any]]:
    """Return made-up points beside Torch-Pruning, whose score at a quarter is given."""
    rows = []
    for method, effort, score in (("isthmus", "faster", 0.95), ("torch-pruning taylor", "", 0.9)):
        for share in (0.5, 0.25):
            value = theirs if not effort and share == 0.25 else score
            rows.append(
                {"method": method, "effort": effort, "share": share, "seed": 0, "relative": value, "before": 1.0}
            )
    return rows


def test_every_target_met() -> None:
    found = targets(jobs(), 0.2)
    assert [target.met for target in found] == [True] * len(found)
    assert len(found) == 21


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"half-full": job("params=50%", "full", 0.98)}, "quality"),
        ({"latency-full": job("latency=50%", "full", 0.98, latency=0.51)}, "latency=50%`: measured"),
        ({"half-faster": job("params=50%", "faster", 0.965)}, "--effort faster"),
        ({"half-faster": job("params=50%", "faster", 0.98, seconds=301)}, "--effort faster"),
        ({"tenth-full": job("params=10%", "full", 0.86, seconds=2701)}, "--effort full"),
        ({"12mb-none": job("bytes=12MB", "none", 0.999, seconds=181)}, "--effort none`: wall time"),
        ({"5mb-fast": job("bytes=5MB", "fast", 0.99, seconds=3601)}, "with recovery: wall time"),
        ({"5mb-fast": job("bytes=5MB", "fast", 0.98)}, "bytes=5MB`: quality"),
        (
            {"latency-18-faster": job("latency=18% --precision w8a8", "faster", 0.98, latency=0.17, whole=0.33)},
            "the speed of NNCF",
        ),
        ({"tenth-full": {**job("params=10%", "full", 0.86), "peak_bytes": 1_400_000_001}}, "peak memory"),
    ],
)
def test_one_target_missed(changed: dict[str, Any], missed: str) -> None:
    found = [target for target in targets(jobs(**changed), 0.2) if not target.met]
    assert len(found) == 1
    assert missed in found[0].name


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert {target.met for target in targets({}, None)} == {None}
    only = {"half-fast": job("params=50%", "fast", 0.99)}
    assert targets(only, 0.4)[0].reached == "99.0% (`--effort fast`)"
    assert targets(only, 0.4)[-1].met is False


def test_jobs_run_quick_ones_first() -> None:
    assert jobs_for(["half", "tenth"], ["full", "faster"]) == [
        ("half", "faster"), ("tenth", "faster"), ("half", "full"), ("tenth", "full"),
    ]  # fmt: skip
    with pytest.raises(BadInput, match="unknown 'third'"):
        jobs_for(["third"], ["full"])


def test_a_command_is_measured() -> None:
    seconds, peak = run_measured([sys.executable, "-c", "x = bytearray(50_000_000); x[::4096] = x[::4096]"])
    assert seconds > 0
    assert 50_000_000 < peak < 100_000_000, "the memory of the process that measures must not count"
    with pytest.raises(IsthmusError, match="no such thing"):
        run_measured([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_conclusion_beside_torch_pruning() -> None:
    ahead = conclude(outcomes(0.9))
    assert ahead["ahead_at_every_point"]
    assert ahead["leads"]["torch-pruning taylor"]["0.25"] == pytest.approx(0.05)
    assert not conclude(outcomes(0.95))["ahead_at_every_point"]
    assert not conclude([])["ahead_at_every_point"]


def test_points_go_by_turns() -> None:
    methods = [point.label for point in wanted_points([0.5, 0.25], [0], "faster")]
    assert methods == ["isthmus faster", "torch-pruning magnitude", "torch-pruning taylor"] * 2


def test_page(tmp_path: Path) -> None:
    page, empty = tmp_path / "benchmarks.md", tmp_path / "none"
    write_page(empty, empty, page)
    assert page.read_text().count("| not measured |  |") == 23
    record = {"versions": {"torch-pruning": "1"}, "cores": 2, "steps": 3}
    made = [vars(target) for target in targets(jobs(), 0.2)]
    reach = {"targets": made, "jobs": jobs(), "record": record}
    (tmp_path / "reach.json").write_text(json.dumps(reach))
    peer = {"points": outcomes(0.97), "record": record, **conclude(outcomes(0.97))}
    (tmp_path / "torch_pruning.json").write_text(json.dumps(peer))
    part = {"summary": "25%: +1.0 points", "verdict": "holds"}
    (tmp_path / "vtrans.json").write_text(json.dumps({"parts": [part]}))
    text = render(tmp_path, tmp_path)
    assert text.count("| yes |") == 22
    assert "| -2.0 to +5.0 points | **no** |" in text
    assert "| `latency=50%` | full | 50.0% | 50.0% | 49.9% | 98.0% |" in text


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(RESULTS, CLAIMS), "run python -m benchmarks --table"


def test_the_readme_shows_what_was_measured(tmp_path: Path) -> None:
    reach = json.loads((RESULTS / "reach.json").read_text(encoding="utf-8"))
    assert headline(reach).count("\n") == 1 + len({job["to"] for job in reach["jobs"].values()}), "a head and a rule"
    copy, text = tmp_path / "README.md", (ROOT / "README.md").read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    write_readme(RESULTS, copy)
    assert copy.read_text(encoding="utf-8") == text, "run python -m benchmarks --table"
    assert headline(reach) in text


def test_unknown_benchmark_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torch"]) == 2
    names = "reach, torch_pruning, bitstream, families, roofline, known_mi, vision_pruning, vision_tokens, "
    names += "cache, layerwise, audits"
    assert capsys.readouterr().err == f"unknown benchmark 'torch'; the benchmarks are {names}\n"
