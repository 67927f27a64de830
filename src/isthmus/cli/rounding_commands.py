"""``isthmus round``: weights and activations of few bits without training, and what that saves and loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import print_text
from isthmus.cli.progress import reporting
from isthmus.export.engines import find_engine

if TYPE_CHECKING:
    from isthmus.network import Network


def round_(
    model: options.Model,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the rounded network goes.")],
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="repquant, repq-vit, is-vit or plain.")
    ] = "repquant",
    weights: Annotated[int, typer.Option("--weights", metavar="BITS", help="Of weights: 2 to 8.")] = 4,
    activations: Annotated[int, typer.Option("--activations", metavar="BITS", help="Of activations: 2 to 8.")] = 4,
    examples: Annotated[int, typer.Option("--examples", metavar="N", help="How many images levels are set on.")] = 128,
    task: options.TaskSpec = None,
    seed: options.Seed = 0,
    engine: options.EngineName = "openvino",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Round weights and activations of a vision transformer without training; measure what that saves and loses."""
    find_engine(engine)
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import tables
    from isthmus.flow.rounding import round_network

    read = flow.task(spec)
    network: Network = flow.open(model)
    with reporting(quiet=quiet) as progress:
        made = round_network(
            network, read, out, method=method, weights=weights, activations=activations, examples=examples,
            engine=engine, seed=seed, progress=progress,
        )  # fmt: skip
    if json_:
        print_text(json.dumps({"networks": made.rows}, indent=1))
        return
    tables.show_comparison(made.rows)
    tables.show_folder(out)
