"""The benchmark of audits: one small classifier through all of it, and what is concluded and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import audits
from claims.common import Point

import pictured


@pytest.fixture(scope="module")
def outcome() -> dict[str, object]:
    task = pictured.pictures_task(400)
    network = pictured.learned(pictured.vit(), task, steps=60)
    other = replace(pictured.learned(pictured.vit(seed=1), task, steps=60), name="other")
    case = audits.Case(lambda: network, lambda: other, task, 5)
    bench = audits.Bench("vit", case, print)
    assert set(bench.record()) == {"versions", "network", "data", "steps"}
    return dict(bench.measure(Point(audits.METHOD, audits.SHARE, 0)))


def test_a_classifier_is_narrowed_and_audited(outcome: dict[str, object]) -> None:
    row: dict[str, object] = outcome
    # What the runner of points says of each.
    assert {"relative", "before", "after", "seconds"} <= set(row)
    params, whole = row["params"], row["original_params"]
    assert isinstance(params, int)
    assert isinstance(whole, int)
    assert params <= audits.SHARE * whole
    assert row["exemplars"] == row["disagree"], "the audit counts as predictions do"
    assert isinstance(row["slices"], list)
    assert row["slices"]


def test_what_is_concluded_and_shown(outcome: dict[str, object]) -> None:
    gap = {"value": -0.3, "low": -0.4, "high": -0.2, "count": 20}
    slices = [
        {"name": name, "count": 9, "damage": {**gap, "value": 0.2}, "excess": 0.1, "p": 0.01, "found": found}
        for name, found in (("class 1", True), ("dark", False))
    ]
    judge = {"exemplars": 0.5, "all": 0.75}
    point = {**outcome, "gap": gap, "slices": slices, "judge": judge, "loss": [0.1, 0.2]}
    found = audits.conclude([point, {**point, "judge": None}])
    assert found == {"harder": True, "judge": [-25.0], "damaged": ["class 1"], "slices": 2}
    assert not audits.conclude([point, {**point, "gap": {**gap, "high": 0.01}}])["harder"]
    text = "\n".join(audits.section([{"network": "vit", "points": [point], **found}]))
    assert "-30.0 (-40.0 to -20.0)" in text
    assert "-25.0" in text
    assert "class 1 +20.0" in text


def test_predictions_are_of_all_examples_in_order() -> None:
    network = pictured.vit()
    examples = pictured.pictures_task(240).train[:130]
    whole = audits.predicted(network, examples)
    assert len(whole) == 130
    assert np.array_equal(whole[100:], audits.predicted(network, examples[100:]))


def test_unknown_networks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus.errors import BadInput

    monkeypatch.setattr(audits, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(audits, "why_not", lambda *_: None)
    with pytest.raises(BadInput, match="unknown network 'bert'"):
        audits.run(tmp_path, networks=["bert"], seeds=[0])
