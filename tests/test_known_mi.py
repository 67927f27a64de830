"""The benchmark of known information: what is drawn, concluded and written; on made-up answers only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.known_mi import Drawn, _point, _takes, conclude, section, sklearn
from benchmarks.known_mi_cases import by_half, cases, gaussian_nats, half


def drawn(folder: Path, x: np.ndarray, y: np.ndarray, *, labels: tuple[bool, bool] = (False, False)) -> Drawn:
    path = folder / "case.npz"
    np.savez(path, x=x, y=y, labels=np.array(labels))
    return Drawn("made-up", 0.5, 10_000, path)


def answer(tool: str, case: str, nats: float | None, *, truth: float = 1.0, part: str = "tuning") -> dict[str, Any]:
    interval = None if nats is None else [nats - 0.1, nats + 0.1]
    about = {"tool": tool, "case": case, "half": part, "samples": 2000, "truth": truth, "seconds": 2.0}
    return {**about, "nats": nats, "interval": interval}


def test_names_decide_the_half() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names) == 30
    found = by_half(dict.fromkeys(names))
    assert sorted(found["tuning"] + found["reported"]) == sorted(names)
    assert half("1v1-normal-0.75") == half("1v1-normal-0.75") == "reported"


def test_samples_depend_on_case_and_seed_only() -> None:
    case = cases()[0]
    first, again, other = case.samples(50, 1), case.samples(50, 1), case.samples(50, 2)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert gaussian_nats([0.6]) == pytest.approx(-np.log(0.8))


def test_errors_coverage_and_widths_are_counted_by_half() -> None:
    points = [
        answer("isthmus", "a", 1.05),
        answer("isthmus", "b", 1.3, part="reported"),
        answer("isthmus", "c", None, part="reported"),
        answer("npeet", "a", 0.5),
        answer("npeet", "c", 0.5),
        {**answer("torch_mist", "b", None), "failed": "no"},
    ]
    found = conclude(points)["summary"]["2000"]
    assert found["ours"]["tuning"]["coverage"] == 1
    assert found["ours"]["reported"] == pytest.approx(
        {"cases": 2, "estimated": 1, "mean_error": 0.3, "coverage": 0, "width": 0.2, "median_width": 0.2}
        | {"seconds": 2, "most_seconds": 2}
    )
    assert found["ours"]["all"]["cases"] == 3
    # Only the case that both gave a value for.
    assert found["peers"] == {
        "npeet": pytest.approx({"cases": 1, "mean_error": 0.5, "our_mean_error": 0.05, "seconds": 2})
    }


def test_the_page_has_every_figure() -> None:
    page = "\n".join(section(conclude([answer("isthmus", "a", 1.05), answer("npeet", "a", 0.5)])))
    assert "| 2,000 | tuning | 1 of 1 | 0.050 | 100% | 0.200 | 0.200 | 2.0 |" in page
    assert "| 2,000 | npeet | 1 | 0.500 | 0.050 | 2.0 |" in page
    assert "reported |" not in page


def test_each_tool_gets_what_it_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = drawn(tmp_path, rng.normal(size=(100, 9)), rng.normal(size=(100, 4)))
    assert sklearn(wide, 0) is None
    assert not _takes("npeet", wide)
    assert _takes("torch_mist", wide)
    label = drawn(tmp_path, rng.normal(size=(100, 1)), rng.integers(0, 2, (100, 1)), labels=(False, True))
    assert label.kinds == "continuous/discrete"
    assert label.pair()[1].shape == (100,)
    found = sklearn(label, 0)
    assert found is not None
    assert found["nats"] < 0.2
    point = _point("npeet", label, {"nats": float("nan"), "seconds": 1.0})
    assert (point["nats"], point["failed"]) == (None, "not a finite number")
