"""The doctor finds nothing wrong with a sound anatomy, and what is wrong with another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import networks
import small
from isthmus import doctor, sites
from isthmus.storage.opening import open as open_network


@pytest.mark.parametrize("name", networks.NAMES)
def test_sound_without_tokenizer(name: str) -> None:
    diagnosis = doctor.diagnose(networks.tiny(name), export=name in ("bert", "modernbert-classifier"))
    assert diagnosis.ok, [row for row in diagnosis.rows if not row.ok]
    checks = {row.check for row in diagnosis.rows}
    assert {"mask", "saved"} <= checks
    assert "vocabulary" not in checks


def test_sound_with_tokenizer(tmp_path: Path) -> None:
    network = open_network(small.write_network(tmp_path / "tiny"))
    diagnosis = doctor.diagnose(network, seed=3)
    assert diagnosis.ok, [row for row in diagnosis.rows if not row.ok]
    assert {row.check for row in diagnosis.rows} == {"mask", "vocabulary", "saved", "exported"}
    assert json.loads(json.dumps(diagnosis.as_json()))["ok"] is True


def test_same_seed_same_diagnosis() -> None:
    network = networks.tiny("electra")
    assert doctor.diagnose(network, export=False) == doctor.diagnose(network, export=False)


def test_a_forgotten_gate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An anatomy that forgets one norm: closing the width no longer gives what removing it gives."""
    found = sites.discover(networks.tiny("bert"))
    wrong = tuple(replace(site, gates=site.gates[:-1]) if site.name == sites.WIDTH else site for site in found)
    monkeypatch.setattr(sites, "survey", lambda _: sites.Survey(wrong))
    diagnosis = doctor.diagnose(networks.tiny("bert"), export=False)
    assert not diagnosis.ok
    assert {row.site for row in diagnosis.rows if not row.ok} <= {sites.WIDTH, "all sites"}
    assert sites.WIDTH in {row.site for row in diagnosis.rows if not row.ok}
