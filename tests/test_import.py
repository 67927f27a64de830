"""Importing isthmus is light, and its public names stay what they are."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import isthmus

SCRIPT = """
import json, sys
before = set(sys.modules)
import isthmus
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_import_brings_nothing_but_isthmus_and_the_standard_library() -> None:
    """What it takes is measured by the benchmark «reach»; that no package is read keeps it so."""
    brought = set(json.loads(run(SCRIPT)))
    assert brought - set(sys.stdlib_module_names) == {"isthmus"}


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
