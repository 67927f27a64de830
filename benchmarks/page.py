"""docs/benchmarks.md, written from the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from claims.tables import markdown_table, score_table, scores

from benchmarks import audits, cache, families, known_mi, layerwise, roofline, vision_page
from benchmarks.bitstream import section
from benchmarks.reach import EFFORTS, GOALS, targets
from isthmus.storage.files import write_atomic

HEADER = "<!-- written by python -m benchmarks --table from benchmarks/results/ and claims/results/ -->"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _word(met: bool | None) -> str:
    return {True: "yes", False: "**no**", None: ""}[met]


def reach_rows(
    reach: Mapping[str, Any] | None, claim: Mapping[str, Any] | None, peer: Mapping[str, Any] | None
) -> list[list[str]]:
    """Return the rows of the table of targets."""
    measured = reach["targets"] if reach else [vars(target) for target in targets({}, None)]
    rows = [[row["name"], row["target"], row["reached"], _word(row["met"])] for row in measured]
    name = "gates against random, magnitude, activation, Taylor and Fisher"
    target = "never behind the best by more than its spread; ahead at 25 % and below"
    part = next(iter((claim or {}).get("parts", [])), None)
    if part is None:
        rows.append([name, target, "not measured", ""])
    else:
        rows.append([name, target, part["summary"], _word(part["verdict"] == "holds")])
    name, target = "against Torch-Pruning (magnitude and Taylor)", "ahead at every point"
    if peer is None:
        return [*rows, [name, target, "not measured", ""]]
    leads = [lead for found in peer["leads"].values() for lead in found.values()]
    reached = f"{100 * min(leads):+.1f} to {100 * max(leads):+.1f} points" if leads else "not measured"
    return [*rows, [name, target, reached, _word(peer["ahead_at_every_point"] if leads else None)]]


def _reach(reach: Mapping[str, Any]) -> list[str]:
    rows = []
    for job in sorted(reach["jobs"].values(), key=lambda job: (job["to"], EFFORTS.index(job["effort"]))):
        original, narrowed = job["rows"][:2]
        rows.append(
            [
                f"`{job['to']}`",
                job["effort"],
                f"{narrowed['params'] / original['params']:.1%}",
                f"{narrowed['bytes'] / original['bytes']:.1%}",
                f"{narrowed['latency_ms'] / original['latency_ms']:.1%}",
                f"{narrowed['relative']:.1%}",
                f"{job['seconds'] / 60:.1f}",
                f"{job['peak_bytes'] / 1e6:.0f}",
            ]
        )
    heads = ["budget", "effort", "parameters", "bytes", "latency", "quality", "minutes", "peak MB"]
    cores = reach["record"]["cores"]
    return [
        markdown_table(heads, rows),
        "",
        f"`isthmus narrow` on {cores} cores, then `isthmus compare` on STS-B dev (Spearman); shares of the original, "
        "measured side by side.",
        "",
    ]


def _peer(peer: Mapping[str, Any]) -> list[str]:
    record = peer["record"]
    before = scores(peer["points"], "before")
    rows = [[f"`{label}`", f"{share:.0%}", f"{value.mean:.3f}"] for (label, share), value in before.items()]
    return [
        "## Beside Torch-Pruning",
        "",
        score_table(peer["points"]),
        "",
        "Quality on STS-B dev relative to the original, in percent. Torch-Pruning "
        f"{record['versions']['torch-pruning']} has no site for the vocabulary: it is given the network with the "
        "vocabulary that our plan keeps, prunes width, heads and neurons to the same measured parameters (within half "
        "a percent) by the best of its settings (local, global or isomorphic; with the width or without), and gets "
        f"the same {record['steps']} steps of recovery. Points were run by turns.",
        "",
        markdown_table(["after the cut, before recovery", "share", "divergence in nats"], rows),
        "",
    ]


def render(results: Path, claims: Path) -> str:
    """Return docs/benchmarks.md."""
    reach, peer = _read(results / "reach.json"), _read(results / "torch_pruning.json")
    stream, joint = _read(results / "bitstream.json"), _read(results / "families.json")
    lines = [HEADER, "", "# Benchmarks", "", "all-MiniLM-L6-v2; run by `python -m benchmarks`.", ""]
    lines += ["## What it reaches", ""]
    lines += [
        markdown_table(["what", "target", "reached", "met"], reach_rows(reach, _read(claims / "vtrans.json"), peer)),
        "",
    ]
    if reach is not None:
        lines += _reach(reach)
    if peer is not None:
        lines += _peer(peer)
    if stream is not None:
        lines += section(stream)
        rows = [[row["name"], row["target"], row["reached"], _word(row["met"])] for row in stream["targets"]]
        lines += [markdown_table(["what", "target", "reached", "met"], rows), ""]
    if joint is not None:
        lines += families.section(joint)
    clock = _read(results / "roofline.json")
    if clock is not None:
        lines += roofline.section(clock)
    if (known := _read(results / "known_mi.json")) is not None:
        lines += known_mi.section(known)
    if (caches := _read(results / "cache.json")) is not None:
        lines += cache.section(caches)
        aims = [[row["name"], row["target"], row["reached"], _word(row["met"])] for row in caches["targets"]]
        lines += [markdown_table(["what", "target", "reached", "met"], aims), ""]
    if (layers := _read(results / "layerwise.json")) is not None:
        lines += layerwise.section(layers)
    if peers := [found for path in sorted(results.glob("vision_pruning_*.json")) if (found := _read(path))]:
        lines += vision_page.pruning_section(peers)
    if audited := audits.results_in(results):
        lines += audits.section(audited)
    if (tokens := _read(results / "vision_tokens.json")) is not None:
        lines += vision_page.tokens_section(tokens)
    return "\n".join(lines).rstrip() + "\n"


def write_page(results: Path, claims: Path, page: Path) -> None:
    """Write docs/benchmarks.md."""
    write_atomic(page, render(results, claims).encode())


START, END = "<!-- figures: written by make docs -->", "<!-- end of figures -->"


def headline(reach: Mapping[str, Any]) -> str:
    """Return the README's table: for each budget what the quickest effort makes of it."""
    rows = []
    for name, goal in GOALS.items():
        job = next(
            (reach["jobs"][key] for effort in reversed(EFFORTS) if (key := f"{name}-{effort}") in reach["jobs"]), None
        )
        if job is None:
            continue
        original, narrowed = job["rows"][:2]

        def share(key: str, a: Mapping[str, Any] = original, b: Mapping[str, Any] = narrowed) -> str:
            return f"{b[key] / a[key]:.0%}"

        rows.append(
            [
                f"`--to {goal.label} --effort {job['effort']}`",
                f"{narrowed['params'] / 1e6:.1f} M ({share('params')})",
                f"{narrowed['bytes'] / 1e6:.1f} MB ({share('bytes')})",
                f"{narrowed['macs'] / 1e6:.0f} M ({share('macs')})",
                f"{narrowed['latency_ms']:.0f} of {original['latency_ms']:.0f} ms ({share('latency_ms')})",
                f"{narrowed['metric']:.4f} of {original['metric']:.4f}, **{narrowed['relative']:.1%}**",
                f"{job['seconds'] / 60:.1f} min",
            ]
        )
    heads = ["all-MiniLM-L6-v2", "parameters", "bytes on disk", "MACs", "latency", "Spearman", "took"]
    return markdown_table(heads, rows)


def write_readme(results: Path, readme: Path) -> None:
    """Write the README's table between its two marks, where there are results and marks."""
    reach, text = _read(results / "reach.json"), readme.read_text(encoding="utf-8")
    if reach is None or START not in text or END not in text:
        return
    head, rest = text.split(START, 1)
    _, tail = rest.split(END, 1)
    write_atomic(readme, f"{head}{START}\n\n{headline(reach)}\n\n{END}{tail}".encode())
