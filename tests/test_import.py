"""Importing isthmus is light, and its public names stay what they are."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

import isthmus

HEAVY = ("torch", "transformers", "numpy", "polars", "scipy", "openvino", "pydantic")
SCRIPT = """
import json, sys, time
start = time.perf_counter()
import isthmus
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(sys.modules)]))
"""


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_import_is_fast_and_brings_nothing_heavy() -> None:
    runs = [json.loads(run(SCRIPT)) for _ in range(3)]
    assert statistics.median(seconds for seconds, _ in runs) <= 0.3
    assert not set(HEAVY) & set(runs[0][1])


def test_help_brings_nothing_heavy() -> None:
    script = (
        "import sys; from isthmus.cli.main import main; code = main(['--help']); "
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert run(script).strip().endswith("0 False False")


def test_submodule_does_not_take_the_name_of_a_function() -> None:
    script = (
        "import isthmus.plan, isthmus; from isthmus.plan import Plan; "
        "print('plan' in vars(isthmus), Plan.__name__, isthmus.__version__)"
    )
    assert run(script).split() == ["False", "Plan", isthmus.__version__]


@pytest.mark.parametrize("name", sorted(set(isthmus.__all__) - {"__version__"}))
def test_public_names_are_functions_of_the_flow(name: str) -> None:
    from isthmus import flow

    assert callable(getattr(isthmus, name))
    assert getattr(isthmus, name) is getattr(flow, name)
    assert name in dir(isthmus)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'shrink'"):
        isthmus.shrink  # noqa: B018
