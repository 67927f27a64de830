"""``isthmus tokens``: let tokens leave a network from layer to layer, and measure what that saves and loses."""

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


def tokens(
    model: options.Model,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the narrowed network goes.")],
    policy: Annotated[
        str,
        typer.Option(
            "--policy", metavar="SCORE:ACTION:SCHEDULE", help="similarity:merge:macs=60%, or :share=70%@3,6,9."
        ),
    ],
    task: options.TaskSpec = None,
    seed: options.Seed = 0,
    engine: options.EngineName = "openvino",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Let tokens leave a network from layer to layer, without training; measure what that saves and loses."""
    find_engine(engine)
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import tables
    from isthmus.flow.tokens import narrow_by_tokens

    read = flow.task(spec)
    network: Network = flow.open(model)
    with reporting(quiet=quiet) as progress:
        made = narrow_by_tokens(network, read, policy, out, engine=engine, seed=seed, progress=progress)
    if json_:
        print_text(json.dumps({"plan": made.plan.model_dump(mode="json"), "networks": made.rows}, indent=1))
        return
    tables.show_comparison(made.rows)
    tables.show_folder(out)
