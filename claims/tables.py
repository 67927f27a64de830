"""Tables: means and spreads over seeds, and docs/claims.md written from the results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims.common import Outcome, point_of
from isthmus.storage.files import write_atomic

HEADER = "<!-- written by python -m claims --table from claims/results/ -->"


@dataclass(frozen=True)
class Score:
    """Relative scores over seeds: the mean, the sample standard deviation (0 for one seed) and how many."""

    mean: float
    spread: float
    seeds: int

    def __str__(self) -> str:
        """Return it in percent."""
        return f"{100 * self.mean:.1f} ± {100 * self.spread:.1f}" if self.seeds > 1 else f"{100 * self.mean:.1f}"


def score(values: Sequence[float]) -> Score:
    """Return mean and spread of at least one value."""
    return Score(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def scores(outcomes: Sequence[Outcome], key: str = "relative") -> dict[tuple[str, float], Score]:
    """Return the score of every method at every share."""
    values: dict[tuple[str, float], list[float]] = {}
    for outcome in outcomes:
        point = point_of(outcome)
        values.setdefault((point.label, point.share), []).append(float(outcome[key]))
    return {cell: score(found) for cell, found in values.items()}


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; bars within cells are escaped."""
    lines = [list(heads), ["---"] * len(heads), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def score_table(outcomes: Sequence[Outcome]) -> str:
    """Return relative scores in percent, methods by shares; the best mean at each share is bold."""
    cells = scores(outcomes)
    labels = list(dict.fromkeys(label for label, _ in cells))
    shares = sorted({share for _, share in cells}, reverse=True)
    best = {share: max(value.mean for (_, at), value in cells.items() if at == share) for share in shares}
    rows = []
    for label in labels:
        row = [f"`{label}`"]
        for share in shares:
            found = cells.get((label, share))
            text = "" if found is None else str(found)
            row.append(f"**{text}**" if found is not None and found.mean == best[share] else text)
        rows.append(row)
    return markdown_table(["method", *(f"{share:.0%} of the parameters" for share in shares)], rows)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of all claims, by slug."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return sorted((data for data in found if isinstance(data, dict) and "slug" in data), key=lambda data: data["slug"])


def curve_table(outcomes: Sequence[Outcome], original: Mapping[str, Any]) -> str:
    """Return what codes take and lose, a row for each arm and level, means over seeds.

    Parameters
    ----------
    original : mapping
        Its ``bytes``, of the weight file.
    """
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome["arm"], outcome["level"]), []).append(outcome)
    arms = list(dict.fromkeys(arm for arm, _ in groups))
    rows = []
    for (arm, _), runs in sorted(groups.items(), key=lambda item: (arms.index(item[0][0]), -_mean(item[1], "bytes"))):
        size = _mean(runs, "bytes")
        cells = [f"{size / 1e6:.2f}", f"{size / original['bytes']:.1%}", f"{_mean(runs, 'bits'):.2f}"]
        relative = str(score([run["relative"] for run in runs]))
        rows.append([f"`{arm}`", runs[0]["setting"], *cells, f"{_mean(runs, 'nats'):.3g}", relative])
    return markdown_table(["code", "setting", "MB", "of the original", "bits a weight", "nats", "quality"], rows)


def trial_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the heads and rows of a result's table: arms and levels, means over seeds ± their standard deviation."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in result["points"]:
        groups.setdefault((outcome["arm"], outcome["level"]), []).append(outcome)
    rows = [["arm", result["level"], *(column["heading"] for column in result["columns"])]]
    for (arm, level), runs in groups.items():
        cells = [f"`{arm}`", f"{level:g}"]
        for column in result["columns"]:
            values = [run[column["key"]] for run in runs if run.get(column["key"]) is not None]
            found = score(values) if values else None
            mean = "" if found is None else column["shown"].format(found.mean)
            cells.append(f"{mean} ± {column['shown'].format(found.spread)}" if found and found.seeds > 1 else mean)
        rows.append(cells)
    return rows


def _mean(runs: Sequence[Outcome], key: str) -> float:
    return statistics.fmean(run[key] for run in runs)


def _points(result: Mapping[str, Any]) -> list[str]:
    told = "Quality relative to the original, in percent: mean ± standard deviation over seeds."
    if result.get("kind") == "trials":
        heads, *rows = trial_table(result)
        return [markdown_table(heads, rows), "", "Mean ± standard deviation over seeds.", ""]
    if result.get("kind") == "coding":
        return [curve_table(result["points"], result["original"]), "", told, ""]
    return [score_table(result["points"]), "", told, ""]


def _section(result: Mapping[str, Any]) -> list[str]:
    record = result["record"]
    lines = [f"## {result['slug']}: {result['verdict']}", "", f"**Claim.** {result['claim']}", ""]
    lines += [f"**Experiment.** {result['experiment']}", "", *_points(result)]
    rows = [[part["name"], part["rule"], part["summary"], part["verdict"]] for part in result["parts"]]
    lines += [markdown_table(["part", "rule", "found", "verdict"], rows), ""]
    seeds = sorted({outcome["seed"] for outcome in result["points"]})
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    steps = "" if result.get("kind") == "trials" else f"{record.get('steps', 'no')} steps of recovery; "
    network = f", network `{record['network'][:12]}`" if "network" in record else ""
    lines += [f"Seeds {', '.join(map(str, seeds))}; {steps}data `{record['data'][:12]}`{network}; {versions}.", ""]
    return lines


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """Return docs/claims.md."""
    lines = [HEADER, "", "# Claims", ""]
    lines += ["Statements from papers about methods, each tested by a small experiment here (`python -m claims`).", ""]
    if not results:
        return "\n".join([*lines, "None has been tested yet.", ""])
    rows = [[f"`{result['slug']}`", result["claim"], result["verdict"]] for result in results]
    lines += [markdown_table(["paper", "claim", "verdict"], rows), ""]
    for result in results:
        lines += _section(result)
    return "\n".join(lines).rstrip() + "\n"


def write_table(results: Path, page: Path) -> None:
    """Write docs/claims.md from the results."""
    write_atomic(page, render(read_results(results)).encode())
