"""``python tests/write_networks.py``: ask the doctor about every architecture, and write docs/networks.md.

Results are kept one by one in benchmarks/results/networks.json; what is there already is not asked again, but with
``--again``. ``--table`` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from isthmus.storage.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "networks.json", ROOT / "docs" / "networks.md"
LIMITS = {"mask": 1e-5, "saved": 0.0, "exported": 1e-4, "vocabulary": 1e-5}
INTRODUCTION = """# Networks

Which architectures have sites, and what was proved of each: `isthmus doctor` on a small random network of that class,
narrowed at random. *Mask* is the largest difference between closing units and removing them, over every site alone and
all at once, as a share of the largest output (limit 1e-5). *Saved* is the difference between a narrowed network and
itself after saving and opening it; of a language model also whether what it then generates, with its cache, is what the
narrowed one finds likeliest. *Exported* is the difference between OpenVINO and PyTorch (limit 1e-4). The test
suite repeats this for all sites at once, and holds predicted parameters, bytes and MACs against counted ones.

Text encoders have a declared anatomy. Any other network is run once: what hangs together is found by following its
tensors (`isthmus/sites/tracing.py`), so a network that is not in this table may well have sites; ask the doctor. What
states a size in its code that nothing can make follow is left alone, and the doctor names it.

<!-- networks: written by make docs -->
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help="of architectures; all if none")
    options.add_argument("--again", action="store_true", help="ask again what is known")
    options.add_argument("--table", action="store_true", help="only write the page from the results")
    given = options.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not given.table:
        for name in given.names or all_names():
            if given.again or name not in results:
                results[name] = asked(name)
                print(name, "ok" if results[name]["ok"] else "NOT OK", flush=True)
                _write(RESULTS, json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    _write(PAGE, INTRODUCTION + "\n" + table(results) + "\n")


def all_names() -> list[str]:
    import decoders
    import networks
    import visions

    return [*networks.NAMES, *visions.NAMES, *visions.MODULES, *decoders.NAMES]


def asked(name: str) -> dict[str, Any]:
    """Return what the doctor says of one architecture."""
    import torch

    import decoders
    import networks
    import visions
    from isthmus.doctor import diagnose
    from isthmus.sites import survey

    torch.set_num_threads(1)
    maker = networks.tiny if name in networks.NAMES else visions.network
    network = (decoders.network if name in decoders.NAMES else maker)(name)
    start = time.perf_counter()
    diagnosis = diagnose(network)
    worst: dict[str, float] = {}
    for row in diagnosis.rows:
        worst[row.check] = max(worst.get(row.check, 0.0), row.error)
    return {
        "class": type(network.model).__name__,
        "ok": diagnosis.ok,
        "sites": dict(Counter(site.kind for site in survey(network).sites)),
        "worst": worst,
        "left": list(diagnosis.left),
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(results: dict[str, Any]) -> str:
    """Return the table of what passed, and of what is left alone, as Markdown."""
    lines = ["| architecture | class | sites | mask | saved | exported |", "|---|---|---|---|---|---|"]
    left = []
    for name, row in results.items():
        sites = ", ".join(f"{count} {kind}" for kind, count in row["sites"].items())
        figures = [
            f"{row['worst'][check]:.0e}" if row["worst"][check] else "0" for check in ("mask", "saved", "exported")
        ]
        if row["ok"]:
            lines.append(f"| {name} | `{row['class']}` | {sites} | " + " | ".join(figures) + " |")
        left += [f"| {name} | {line.partition(': ')[0]} | {line.partition(': ')[2]} |" for line in row["left"]]
    failed = []
    for name, row in results.items():
        broken = ", ".join(check for check, error in row["worst"].items() if error > LIMITS[check])
        failed += [] if row["ok"] else [f"| {name} | `{row['class']}` | {broken} |"]
    passed = sum(row["ok"] for row in results.values())
    lines += ["", f"{passed} of {len(results)} networks passed every check.", ""]
    if failed:
        lines += ["## Not passed", "", "| architecture | class | what did not hold |", "|---|---|---|", *failed, ""]
    if left:
        lines += ["## Left alone", "", "| architecture | where | why |", "|---|---|---|", *left]
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


if __name__ == "__main__":
    main()
