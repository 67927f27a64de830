"""The commands: each reads its options, calls the flow and prints what came back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import (
    cache_commands,
    layer_commands,
    measuring_commands,
    options,
    rounding_commands,
    token_commands,
    writing_commands,
)
from isthmus.cli.output import print_text, write_text
from isthmus.cli.progress import reporting
from isthmus.errors import BadInput
from isthmus.export.engines import find_engine

if TYPE_CHECKING:
    from isthmus.network import Network

app = typer.Typer(
    help="Make a trained network physically smaller to a stated budget, and measure what was saved and lost.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        import isthmus

        print_text(f"isthmus {isthmus.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Make a trained network physically smaller to a stated budget, and measure what was saved and lost."""


def _open(model: str) -> Network:
    from isthmus.storage.opening import open as open_network

    return open_network(model)


@app.command()
def inspect(
    model: options.Model,
    task: options.TaskSpec = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.html", help="Write a page.")] = None,
    method: options.Method = "fisher",
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show where the parameters, bytes, MACs and the information are."""
    options.check_writable(out)
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import tables

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        inspection = flow.inspect(_open(model), read, method=method, seed=seed, progress=progress)
    if out is not None:
        inspection.save(out)
    if json_:
        print_text(inspection.report.model_dump_json(indent=1))
    else:
        tables.show_inspection(inspection.report)
        if out is not None:
            print_text(f"page: {out}")


@app.command()
def plan(
    model: options.Model,
    task: options.TaskSpec = None,
    to: options.To = None,
    keep: options.Keep = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.json", help="Write the plan.")] = None,
    method: options.Method = "vib",
    effort: options.Effort = "fast",
    codes: options.Codes = "deepcabac",
    sites: options.Sites = "all",
    precision: options.Precision = "float32",
    activations: options.Activations = None,
    seed: options.Seed = 0,
    engine: options.EngineName = "openvino",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what would be done, before anything is touched."""
    options.check_goal(to, keep)
    options.check_writable(out)
    options.choice("--effort", effort, options.EFFORTS)
    find_engine(engine)
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import tables

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        made = flow.plan(
            _open(model),
            read,
            to=to,
            keep=keep,
            method=method,
            effort=effort,
            codes=codes,
            sites=sites,
            precision=precision,
            activations=activations,
            seed=seed,
            engine=engine,
            progress=progress,
        )
    if out is not None:
        write_text(out, made.model_dump_json(indent=1) + "\n")
    if json_:
        print_text(made.model_dump_json(indent=1))
    else:
        tables.show_plan(made)
        if out is not None:
            print_text(f"plan: {out}")


@app.command()
def narrow(
    model: options.Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            help="Where the narrowed network goes.",
            show_default="MODEL-BUDGET, here",
        ),
    ] = None,
    task: options.TaskSpec = None,
    to: options.To = None,
    keep: options.Keep = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE.json", help="Do what this plan says.", show_default=False)
    ] = None,
    method: options.Method = "vib",
    effort: options.Effort = "fast",
    codes: options.Codes = "deepcabac",
    sites: options.Sites = "all",
    precision: options.Precision = "float32",
    activations: options.Activations = None,
    time: options.Time = None,
    seed: options.PlanSeed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run that was stopped left off.")] = False,
    engine: options.EngineName = "openvino",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a network physically smaller, and measure what was saved and what was lost."""
    options.check_goal(to, keep, plan, plans=True)
    options.choice("--effort", effort, options.EFFORTS)
    find_engine(engine)
    limit = options.seconds(time)
    spec, out = options.given_task(task), options.folder_for(out, model, to, keep, plan)
    from isthmus.plan import load_plan

    replayed = None if plan is None else load_plan(plan)
    from isthmus import flow
    from isthmus.cli import tables

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        narrowed = flow.narrow(
            _open(model),
            read,
            to=to,
            keep=keep,
            plan=replayed,
            method=method,
            effort=effort,
            codes=codes,
            sites=sites,
            precision=precision,
            activations=activations,
            time=limit,
            seed=seed,
            engine=engine,
            out=out,
            resume=resume,
            progress=progress,
        )
    if not flow.is_main_process():
        return
    if json_:
        print_text(json.dumps(narrowed.record, indent=1))
    else:
        tables.show_savings(narrowed.report)
        tables.show_folder(out)


@app.command()
def compare(
    models: options.Models,
    task: options.TaskSpec = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - for stdout.")
    ] = None,
    engine: options.EngineName = "openvino",
    quiet: options.Quiet = False,
) -> None:
    """Measure networks side by side, in one interleaved run."""
    find_engine(engine)
    options.check_writable(json_)
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import tables

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        rows = flow.compare([_open(model) for model in models], read, engine=engine, progress=progress)
    if json_ == Path("-"):
        print_text(json.dumps(rows, indent=1))
        return
    if json_ is not None:
        write_text(json_, json.dumps(rows, indent=1) + "\n")
    tables.show_comparison(rows)


@app.command()
def audit(
    original: Annotated[str, typer.Argument(metavar="ORIGINAL", help="The network before.", show_default=False)],
    narrowed: Annotated[
        list[str], typer.Argument(metavar="NARROWED...", help="Networks after: one, or one a seed.", show_default=False)
    ],
    task: options.TaskSpec = None,
    originals: Annotated[
        list[str] | None,
        typer.Option("--original", metavar="MODEL", help="Another original; repeat it."),
    ] = None,
    slices: Annotated[
        Path | None, typer.Option("--slices", metavar="FILE", help="A table of the examples; its columns are slices.")
    ] = None,
    transfer: Annotated[
        list[str] | None, typer.Option("--transfer", metavar="TASK", help="A labelled set to probe; repeat it.")
    ] = None,
    parts: Annotated[str, typer.Option("--parts", metavar="NAME,...", help="What to measure, or all.")] = "all",
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.html", help="Write a page.")] = None,
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what narrowing took away: on which examples, in which slices, in what respects."""
    options.check_writable(out)
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import audit_tables
    from isthmus.flow.auditing import chosen_parts

    chosen_parts(parts)
    read, probed = flow.task(spec), [flow.task(one) for one in transfer or []]
    with reporting(quiet=quiet) as progress:
        audited = flow.audit(
            [_open(model) for model in (original, *(originals or []))],
            [_open(model) for model in narrowed],
            read,
            slices=slices,
            transfer=probed,
            parts=parts,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        audited.save(out)
    if json_:
        print_text(audited.report.model_dump_json(indent=1))
    else:
        audit_tables.show_audit(audited.report)
        if out is not None:
            print_text(f"page: {out}")


@app.command()
def roofline(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="minilm, or a folder with a config.json.", show_default=False)
    ],
    phase: Annotated[
        str | None,
        typer.Option("--phase", metavar="encode|prefill|decode", help="Which pass.", show_default="what MODEL is for"),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Texts or images at once.")] = 1,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Of each text.", show_default="128, or 1 decoded")
    ] = None,
    cache_tokens: Annotated[
        int | None, typer.Option("--cache-tokens", metavar="N", help="In the cache before decode.", show_default="512")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="here (measured), or one such as h100; see docs/cost.md.")
    ] = "here",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="NAME", help="float32, bfloat16, int8, int4 or w8a8.", show_default="the plan's, float32"
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE.json", help="Narrow it so first.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="On device here: openvino or torch.")] = (
        "openvino"
    ),
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Of the engine.", show_default="all cores")
    ] = None,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show from the config alone what every operator costs, what bounds it and how long it takes."""
    from isthmus.plan import load_plan

    chosen = None if plan is None else load_plan(plan)
    from isthmus.cli import tables
    from isthmus.flow.roofline import as_json
    from isthmus.flow.roofline import roofline as analyse

    with reporting(quiet=quiet) as progress:
        found = analyse(
            model,
            phase=phase,
            batch=batch,
            tokens=tokens,
            cache_tokens=cache_tokens,
            device=device,
            dtype=dtype,
            plan=chosen,
            engine=engine,
            threads=threads,
            progress=progress,
        )
    if json_:
        print_text(json.dumps(as_json(found), indent=1))
    else:
        tables.show_roofline(found)


@app.command()
def methods(json_: options.Json = False) -> None:
    """List the methods: what each is, what it narrows, and whether its claim held here."""
    from isthmus.cli import tables
    from isthmus.methods import methods as known

    if json_:
        print_text(json.dumps([asdict(info) for info in known()], indent=1))
    else:
        tables.show_methods(known())


@app.command()
def doctor(
    model: options.Model,
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prove the anatomy of a network: every site, mask equals removal."""
    from isthmus.cli import tables
    from isthmus.doctor import diagnose

    with reporting(quiet=quiet) as progress:
        diagnosis = diagnose(_open(model), seed=seed, progress=progress)
    if json_:
        print_text(json.dumps(diagnosis.as_json(), indent=1))
    else:
        tables.show_diagnosis(diagnosis)
    if not diagnosis.ok:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where everything goes.")] = Path("demo"),
    time: options.Time = "6min",
    quiet: options.Quiet = False,
) -> None:
    """Narrow all-MiniLM-L6-v2 to half its parameters on text that every machine has."""
    limit = options.seconds(time)
    from isthmus.cli import tables
    from isthmus.demo import run

    if limit is None:
        raise BadInput("--time: not a time; write for example 6min")
    with reporting(quiet=quiet) as progress:
        result = run(out, time=limit, progress=progress, say=print_text)
    tables.show_demo(result)


# The commands of other files come after those of this one, in the help too.
app.command()(writing_commands.delta)
app.command()(writing_commands.load)
app.command()(writing_commands.export)
app.command()(token_commands.tokens)
app.command()(layer_commands.layerwise)
app.command("round")(rounding_commands.round_)
app.command()(measuring_commands.formats)
app.command()(measuring_commands.inputs)
app.command()(measuring_commands.watch)
app.add_typer(cache_commands.app, name="cache")
