"""Everything in a hurry: few steps, few settings, and nothing is exported to be timed, which takes most of a short run.

What must hold, holds for any number of steps. That the networks of a run are exported, timed in a process of their own
and their memory measured is proved without a hurry by the command in ``test_cli.py`` and by ``test_image_flow.py``.

As a script it runs the command in that hurry, and can wait at a given moment for whoever wants to kill it there:
``python quick.py MARKER NAME TIMES narrow ...`` writes the file ``MARKER`` and waits once the function ``NAME`` (module
and attribute) has returned ``TIMES`` times; with 0 times it does not wait.
"""

from __future__ import annotations

import importlib
import operator
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

STEPS = 24


def not_exported(network: Any, engine: str, folder: Path) -> Path:
    """Return the file of an engine that an artifact holds, or one that is not written."""
    from isthmus.export.saved import exported, precision_of

    return exported(network, engine, folder) if precision_of(network, engine) != "float32" else folder


def not_timed(paths: Any, *_: Any, **__: Any) -> Any:
    """Return the same time for each network."""
    from isthmus.cost.latency import Latency

    return {name: Latency(1.0, 1.0, 1.0, 1) for name in paths}


def benched(networks: Sequence[Any], *_: Any, engine: str, **__: Any) -> list[dict[str, Any]]:
    """Return rows of which only the parameters are measured."""
    from isthmus.cost.measure import count_parameters

    common = {
        "macs": 1,
        "macs_of": "one",
        "latency_ms": 1.0,
        "latency_spread": (1.0, 1.0),
        "engine": engine,
        "of": "one",
    }
    more = {"macs_length": 1, "precision": "float32", "batch": 1, "length": 1.0, "peak_bytes": 1}
    return [{"name": one.name, "params": count_parameters(one.model), **common, **more} for one in networks]


def hurry(item: Callable[[Any, str, Any], None], attribute: Callable[[Any, str, Any], None]) -> None:
    """Change what takes long, by ``monkeypatch.setitem`` and ``monkeypatch.setattr`` or for good."""
    from isthmus.allocation import problem
    from isthmus.export import bench
    from isthmus.flow import coding, efforts, floors
    from isthmus.recovery.train import recover
    from isthmus.relevance import vib

    schedule = replace(vib.SCHEDULES["faster"], steps=6, batch=16, close_every=2, gate_rate=0.3, layer_rate=0.1)
    item(vib.SCHEDULES, "faster", schedule)
    item(efforts.STEPS, "faster", STEPS)
    for kind in ("width", "neurons", "vocabulary", "feature"):
        item(problem.LEVELS, kind, 8)
    attribute(floors, "SEARCH_STEPS", 4)
    # The frontier at two budgets beside the one that was asked for.
    attribute(coding.frontier_of, "__defaults__", (4,))
    attribute(bench, "measure_peak", lambda *_: 1_000_000)
    attribute(bench, "exported", not_exported)
    attribute(bench, "time_exported", not_timed)
    # The state of a recovery is kept after every step, not once a minute.
    item(recover.__kwdefaults__, "save_seconds", 0.0)


def wait_after(name: str, times: int, marker: Path) -> None:
    """Write ``marker`` and wait, once a function has returned so many times."""
    path, _, attribute = name.rpartition(".")
    module = importlib.import_module(path)
    original = getattr(module, attribute)
    calls = 0

    def waiting(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        result = original(*arguments, **named)
        calls += 1
        if calls == times:
            marker.touch()
            time.sleep(300)
        return result

    setattr(module, attribute, waiting)


if __name__ == "__main__":
    from isthmus.cli.main import main

    hurry(operator.setitem, setattr)
    marker_, name_, times_, *command = sys.argv[1:]
    if int(times_):
        wait_after(name_, int(times_), Path(marker_))
    sys.exit(main(command))
