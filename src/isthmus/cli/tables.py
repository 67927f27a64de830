"""Tables on the terminal, from what the flow returned."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from isthmus.report.numbers import metric, nats, percent, plain, si

if TYPE_CHECKING:
    from isthmus.cost.roofline.analysis import Roofline, Row
    from isthmus.demo import Demo
    from isthmus.doctor import Diagnosis
    from isthmus.methods import MethodInfo
    from isthmus.network import Network
    from isthmus.plan import Decision, Plan
    from isthmus.report import ReportData

_UNITS = {"bytes": "B", "latency": "ms", "peak": "B", "cache": "B"}


def _console() -> Console:
    # Where the output goes to a file or a pipe, the columns are as wide as what is in them.
    width = None if sys.stdout.isatty() else max(160, shutil.get_terminal_size().columns)
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
    """Print a table whose first ``words`` columns are words, set left, and the others figures, set right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def show_inspection(report: ReportData) -> None:
    """Print what each site costs and carries."""
    rows = [
        (
            site.name,
            site.kind,
            f"{site.units:,}",
            si(site.params),
            si(site.macs),
            nats(site.relevance_total),
        )
        for site in report.sites
    ]
    show_table(
        f"{report.network} on {report.task}", ("site", "kind", "units", "params", "MACs", "carries"), rows, words=2
    )
    if report.layers:
        shown = [
            (f"{profile.name}, {profile.unit}", *(plain(value) for value in profile.values))
            for profile in report.profiles
        ]
        heads = [name.removeprefix("layer ") for name in report.layers]
        show_table("by layer", ("", *heads), shown, words=1)
    _show_rates({row.currency: row.original for row in report.savings}, {}, {})


def _show_rates(original: Mapping[str, float], narrowed: Mapping[str, float], wanted: Mapping[str, float]) -> None:
    columns = ["", "original", *(["narrowed", "share"] if narrowed else []), *(["budget"] if wanted else [])]
    rows = []
    for currency, amount in original.items():
        unit = _UNITS.get(currency, "")
        row = [currency, si(amount, unit)]
        if narrowed:
            value = narrowed.get(currency)
            row += [si(value, unit), percent(value / amount if value is not None and amount else None)]
        if wanted:
            row.append(si(wanted[currency], unit) if currency in wanted else "")
        rows.append(row)
    if rows:
        show_table("", columns, rows)


def _kept(decision: Decision) -> str:
    """Draw which units stay, in eighths of a bar."""
    share = len(decision.keep) / decision.units
    full = round(share * 12)
    return "█" * full + "░" * (12 - full)


def _wanted(plan: Plan) -> dict[str, float]:
    """Return the limits of a plan's budget as amounts; none where it was made for a floor of quality instead."""
    from isthmus.budget import CURRENCIES, parse_budget

    if not plan.budget.startswith(CURRENCIES):
        return {}
    return {str(name): amount for name, amount in parse_budget(plan.budget).amounts(plan.original).items()}


def show_plan(plan: Plan) -> None:
    """Print the decisions of a plan and what they are predicted to save and lose."""
    rows = [
        (
            decision.site,
            decision.kind,
            _kept(decision),
            f"{len(decision.keep):,} of {decision.units:,}",
            percent(len(decision.keep) / decision.units),
            nats(decision.distortion),
        )
        for decision in plan.decisions
    ]
    title = f"plan for {plan.network}: {plan.budget} by {plan.method}, seed {plan.seed}"
    show_table(title, ("site", "kind", "stays", "units", "share", "predicted loss"), rows, words=3)
    if plan.codings:
        codes = [
            (coding.parameter, coding.coder, f"{coding.bits:.2f}", si(coding.bytes, "B"), nats(coding.distortion))
            for coding in plan.codings
        ]
        show_table("codes", ("matrix", "coder", "bits", "takes", "predicted loss"), codes, words=2)
    _show_rates(plan.original, plan.predicted, _wanted(plan))
    print(f"predicted loss before recovery: {nats(plan.distortion)}")
    for note in plan.notes:
        print(f"note: {note}")


def show_savings(report: ReportData) -> None:
    """Print what was saved and what was lost, as measured on the finished artifact."""
    rows: list[tuple[str, ...]] = [
        (
            saving.currency,
            si(saving.original, saving.unit),
            si(saving.narrowed, saving.unit),
            percent(saving.narrowed / saving.original if saving.narrowed is not None and saving.original else None),
            si(saving.limit, saving.unit) if saving.limit is not None else "",
        )
        for saving in report.savings
    ]
    quality = report.quality
    if quality is not None:
        wanted = percent(quality.wanted) if quality.wanted is not None else ""
        figures = (metric(quality.original), metric(quality.narrowed), percent(quality.relative), wanted)
        rows.append((quality.metric_name, *figures))
    show_table(f"{report.network} on {report.task}", ("", "original", "narrowed", "share", "wanted"), rows)
    for warning in report.warnings:
        print(f"note: {warning}")


def show_comparison(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print networks side by side, each figure with its share of the first network's."""
    first = rows[0]

    def cell(row: Mapping[str, Any], key: str, unit: str = "") -> str:
        text = si(row[key], unit)
        return text if row is first or not first[key] else f"{text} ({percent(row[key] / first[key])})"

    body = [
        (
            str(row["name"]),
            cell(row, "params"),
            cell(row, "bytes", "B"),
            cell(row, "macs"),
            cell(row, "latency_ms", "ms"),
            cell(row, "peak_bytes", "B"),
            f"{metric(row['metric'])} [{metric(row['ci95'][0])}, {metric(row['ci95'][1])}]",
            percent(row["relative"]),
            *_language(row, first),
        )
        for row in rows
    ]
    title = f"latency: median in {first['engine']}, batch {first['batch']}, {first['of']}"
    columns = (
        "network",
        "params",
        "bytes",
        "MACs",
        "latency",
        "peak memory",
        f"{first['metric_name']} [95 %]",
        "relative",
        *(("perplexity",) if "perplexity" in first else ()),
        *first.get("recall", ()),
        *(("cache", "perplexity through it") if "cache_bytes" in first else ()),
        *(f"{kind} through it" for kind in first.get("cache_recall", ())),
    )
    show_table(title, columns, body)
    for note in first.get("notes", ()):
        print(f"note: {note}")


def _language(row: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what is shown of a language model beside the others: perplexity, and shares of what it recalls."""
    shown: tuple[str, ...] = (plain(row["perplexity"]),) if "perplexity" in first else ()
    shown += tuple(percent(row["recall"].get(kind)) for kind in first.get("recall", ()))
    if "cache_bytes" in first:
        shown += (si(row["cache_bytes"], "B"), plain(row["cache_perplexity"]))
        shown += tuple(percent(row["cache_recall"].get(kind)) for kind in first.get("cache_recall", ()))
    return shown


def show_methods(infos: Sequence[MethodInfo]) -> None:
    """Print the methods and measures."""
    rows = [
        (info.name, info.role, info.slug or "", ", ".join(info.kinds), info.verdict or "no claim yet", info.summary)
        for info in infos
    ]
    show_table("", ("name", "role", "paper", "narrows", "claim", "what it does"), rows, words=6)


def show_delta(made: Mapping[str, Any], base: str) -> None:
    """Print what a delta takes and what is left of the difference."""
    ranks = list(made["ranks"].values())
    print(
        f"{made['file']}: {si(made['bytes'], 'B')}, {percent(made['share'])} of the fine-tuned network's file; "
        f"{len(ranks)} matrices of rank {min(ranks, default=0)} to {max(ranks, default=0)}; "
        f"{percent(made['error'])} of the difference is left out"
    )
    print(f"open it as {base}+{made['file']}")


def show_export(made: Mapping[str, Any], model: str) -> None:
    """Print what an exported folder takes, and what is in it."""
    if "precision" in made:
        print(
            f"{made['file']}: {si(made['bytes'], 'B')}, {percent(made['share'])} of the weight file of {model}, for "
            f"{made['layout']} in {made['precision']}; isthmus compare {model} {made['folder']} measures it"
        )
        return
    taken, rounded, kept = (len(made[how]) for how in ("taken", "rounded", "kept"))
    print(
        f"{made['folder']}: {si(made['bytes'], 'B')}, {percent(made['share'])} of the weight file of {model}; of "
        f"{taken + rounded + kept} linear maps {taken} keep the integers of their codes, {rounded} were rounded to "
        f"{made['bits']} bits, {kept} stay in floating point"
    )


def show_loaded(network: Network, folder: Path | None) -> None:
    """Print what was opened, and where it was written."""
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    print(f"{network.name}: {type(network.model).__name__}, {parameters:,} parameters, pooling {network.pooling}")
    if folder is not None:
        show_folder(folder)


def show_roofline(found: Roofline) -> None:
    """Print a network's roofline by kind of operator and by layer."""
    total = found.total

    def cells(row: Row) -> tuple[str, ...]:
        share = percent(row.seconds / total.seconds if total.seconds else None)
        moved = (si(row.weight_bytes, "B"), si(row.activation_bytes, "B"), si(row.cache_bytes, "B"))
        return (si(row.macs), *moved, f"{row.intensity:.1f}", row.bound, f"{row.seconds * 1e3:.3g} ms", share)

    figures = ("MACs", "weights", "activations", "cache", "FLOP/B", "bound by", "predicted", "share")
    title = f"{found.network}: {found.phase}, batch {found.batch}, {found.elements.name}"
    kinds = [(row.name, f"{row.count}", *cells(row)) for row in (*found.by_kind(), total)]
    show_table(title, ("kind", "operators", *figures), kinds)
    layers = [(row.name or "(the rest)", f"{row.count}", *cells(row)) for row in found.by_layer()]
    show_table("by layer", ("layer", "operators", *figures), layers)
    device, dtype = found.device, found.elements.product
    print(
        f"device {device.name} ({device.source}): {si(device.peak(dtype))}FLOP/s in {dtype}, "
        f"{si(device.bandwidth, 'B')}/s; bound by compute above {found.balance:.1f} FLOP/B"
    )
    print(
        f"{found.parameters:,} parameters; as a whole bound by {total.bound}: {total.compute_seconds * 1e3:.3g} ms of "
        f"arithmetic, {total.memory_seconds * 1e3:.3g} ms of memory at the peaks"
    )
    if found.cache_bytes:
        print(f"the cache holds {si(found.cache_bytes, 'B')}")
    for note in found.notes:
        print(f"note: {note}")


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print every check of a network's anatomy."""
    rows = [
        (row.check, row.site, "ok" if row.ok else "WRONG", f"{row.error:.1e}", f"{row.limit:.0e}" if row.limit else "0")
        for row in diagnosis.rows
    ]
    show_table(f"doctor: {diagnosis.network}", ("check", "site", "", "error", "at most"), rows, words=3)
    wrong = sum(not row.ok for row in diagnosis.rows)
    total = len(diagnosis.rows)
    print(f"all {total} checks passed" if not wrong else f"{wrong} of {total} checks failed")
    for line in diagnosis.left:
        print(f"left alone: {line}")


def show_demo(demo: Demo) -> None:
    """Print what the demonstration came to."""
    show_comparison(demo.rows)
    print(
        f"opened by plain transformers: AutoModel.from_pretrained({str(demo.folder)!r}), {demo.parameters:,} parameters"
    )
    if demo.page is not None:
        print(f"page: {demo.page}")


def show_folder(folder: Path) -> None:
    """Print where a narrowed network lies, and its page."""
    print(f"network: {folder}")
    page = folder / "report.html"
    if page.exists():
        print(f"page: {page}")
