"""Commands that measure and change nothing: formats, what layers learn in training, compressed inputs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import print_text, write_text
from isthmus.cli.progress import reporting
from isthmus.errors import BadInput

Page = Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.html", help="Write a page.")]


def formats(
    model: options.Model,
    task: options.TaskSpec = None,
    names: Annotated[
        str,
        typer.Option("--formats", metavar="NAME,...", help="Such as openvino:w8a8 or onnxruntime:int8; or all."),
    ] = "all",
    keep: Annotated[
        str, typer.Option("--keep", metavar="SHARE", help="Of the quality, for a format to be recommended.")
    ] = "99%",
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="Of the engines.", show_default="all cores")
    ] = None,
    out: Page = None,
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a network in every engine and precision that runs here, and say which one suits which use."""
    options.check_writable(out)
    spec = options.given_task(task)
    from isthmus.budget import parse_floor
    from isthmus.flow.formats import chosen_formats

    chosen_formats(names)
    floor = parse_floor(keep)
    from isthmus import flow
    from isthmus.cli.tables import show_table
    from isthmus.flow.formats import measure_formats
    from isthmus.report.formats import advice, format_table, render_formats

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        found = measure_formats(
            flow.open(model), read, formats=names, keep=floor, threads=threads, seed=seed, progress=progress
        )
    data = found.as_json()
    if out is not None:
        write_text(out, render_formats(data))
    if json_:
        print_text(json.dumps(data, indent=1))
        return
    table = format_table(data)
    show_table(f"{found.network} on {found.task}", table.columns, table.rows)
    for line in (*advice(data), *(f"left out: {name}: {reason}" for name, reason in found.left.items())):
        print_text(line)
    if out is not None:
        print_text(f"page: {out}")


def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What a training writes its checkpoints into.", show_default=False)
    ],
    task: options.GivenTask = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="MODULE,...", help="Which modules.", show_default="four blocks, first to last"),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Held-out examples.")] = 512,
    noise: Annotated[
        float, typer.Option("--noise", metavar="SHARE", help="Added to a layer, of its own deviation.")
    ] = 0.5,
    estimator: Annotated[str, typer.Option("--estimator", metavar="NAME", help="Of I(X; T).")] = "noisy",
    label_estimator: Annotated[str, typer.Option("--label-estimator", metavar="NAME", help="Of I(T; Y).")] = "auto",
    follow: Annotated[
        float | None,
        typer.Option("--follow", metavar="SECONDS", help="Look for new checkpoints so often, until stopped."),
    ] = None,
    out: Page = None,
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what each layer shares with the input and the label, from checkpoint to checkpoint of a training run."""
    spec = options.labelled_task(task, "classify:FILE or images:FOLDER")
    options.check_writable(out)
    if follow is not None and follow <= 0:
        raise BadInput(f"--follow {follow}: give a number of seconds above 0")
    from isthmus import flow
    from isthmus.flow.watching import check_labelled, watch_folder
    from isthmus.information.plane_points import PlanePoint, points_to_json
    from isthmus.report.plane import narrated, write_plane

    read = flow.task(spec)
    check_labelled(read)

    def wait() -> bool:
        time.sleep(follow or 0)
        return True

    points: list[PlanePoint] = []
    with reporting(quiet=quiet) as progress:
        for found in watch_folder(
            folder,
            read,
            paths=options.words(at or ""),
            samples=samples,
            noise=noise,
            estimator=estimator,
            label_estimator=label_estimator,
            seed=seed,
            wait=None if follow is None else wait,
            progress=progress,
        ):
            points += found
            if out is not None:
                write_plane(points, out, title=f"{folder.name} on {read.name}")
            if not json_:
                print_text(f"step {found[0].step}: " + "; ".join(narrated(found)))
    if json_:
        print_text(points_to_json(points).rstrip())
        return
    for line in narrated(points):
        print_text(line)
    if out is not None:
        print_text(f"page: {out}")


def inputs(
    models: options.Models,
    task: options.GivenTask = None,
    codecs: Annotated[str, typer.Option("--codecs", metavar="NAME,...", help="jpeg and webp.")] = "jpeg,webp",
    qualities: Annotated[
        str, typer.Option("--qualities", metavar="N,...", help="Of each codec, 1 to 100.")
    ] = "90,70,50,30,20,10,5,1",
    images: Annotated[int, typer.Option("--images", metavar="N", min=10, help="Held-out images.")] = 1000,
    judge: Annotated[
        str | None,
        typer.Option("--features", metavar="MODEL", help="Whose features tell distances.", show_default="the first's"),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="MODULE,...", help="Its modules.", show_default="four blocks, first to last"),
    ] = None,
    out: Page = None,
    seed: options.Seed = 0,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show how accurate classifiers are on compressed images, by the bytes that are sent."""
    spec = options.labelled_task(task, "images:FOLDER")
    options.check_writable(out)
    names = options.words(codecs)
    steps = options.integers("--qualities", qualities)
    from isthmus import flow
    from isthmus.cli.tables import show_table
    from isthmus.flow.inputs import measure_sent
    from isthmus.report.inputs import render_inputs, said, sent_table, told_table

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        found = measure_sent(
            [flow.open(model) for model in models],
            read,
            codecs=names,
            qualities=steps,
            images=images,
            judge=None if judge is None else flow.open(judge),
            paths=options.words(at or ""),
            seed=seed,
            progress=progress,
        )
    if out is not None:
        page = render_inputs(
            found.curves, task=found.task, images=found.images, features=found.features, notes=found.notes
        )
        write_text(out, page)
    if json_:
        print_text(json.dumps(found.as_json(), indent=1))
        return
    for title, table in (
        (f"{found.images:,} images of {found.task}", sent_table(found.curves)),
        (f"which distance tells what is lost; features of {found.features}", told_table(found.curves)),
    ):
        show_table(title, table.columns, table.rows, words=2)
    for line in said(found.curves):
        print_text(line)
    if out is not None:
        print_text(f"page: {out}")
