"""The recipes of docs/adding-a-method.md, followed to the letter."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import isthmus
import quick
import small
import tokened
from isthmus.bottlenecks import registry as coders
from isthmus.bottlenecks.tokens import registry as scores
from isthmus.bottlenecks.tokens.narrowing import narrow_tokens
from isthmus.cli.main import main
from isthmus.plan import load_plan
from isthmus.relevance import registry as estimators
from isthmus.storage.weights import weight_bytes

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-method.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    quick.hurry(monkeypatch.setitem, monkeypatch.setattr)
    small.write_network(tmp_path / "tiny")
    small.write_text(tmp_path / "text.txt", 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(number: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module that a block of the page is."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    module = ModuleType(f"recipe_{number}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(blocks[number], str(PAGE), "exec"), module.__dict__)
    return module


def test_a_method_by_the_recipe_makes_plans(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = written(0, monkeypatch)
    monkeypatch.setitem(estimators.ESTIMATORS, "mine", module.Mine)
    order = ["plan", "tiny", "--task", "text:text.txt", "--to", "params=60%", "--method", "mine", "-o", "plan.json"]
    assert main([*order, "--quiet"]) == 0
    plan = load_plan("plan.json")
    assert plan.method == "mine"
    assert plan.predicted["params"] <= 0.6 * plan.original["params"]
    rows = module.Mine.scores.__doc__
    assert rows.startswith("Return the sum of absolute biases")


def test_a_coder_by_the_recipe_codes_a_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = written(1, monkeypatch)
    monkeypatch.setitem(coders.CODERS, "signs", module.Signs)
    order = ["narrow", "tiny", "--task", "text:text.txt", "--to", "bytes=15%", "--codes", "signs", "--effort", "none"]
    assert main([*order, "--method", "fisher", "-o", "made", "--quiet"]) == 0
    assert weight_bytes("made") <= 0.15 * weight_bytes("tiny")
    model = isthmus.open("made").model
    matrix = model.get_parameter("encoder.layer.0.output.dense.weight").detach().numpy()
    assert all(len(np.unique(np.abs(row))) == 1 for row in matrix)


def test_a_score_by_the_recipe_lets_tokens_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    module = written(2, monkeypatch)
    monkeypatch.setitem(scores.SCORES, "length", module.Length)
    network, inputs = tokened.network_of("vit"), tokened.inputs_of("vit")
    half = tokened.policy("length:drop:share=50%@0")
    found = tokened.ran(narrow_tokens(network, half, tokened.WHERE["vit"]), inputs)
    assert not torch.allclose(found, tokened.ran(network, inputs), atol=1e-4)
