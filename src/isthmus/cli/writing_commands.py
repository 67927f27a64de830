"""Commands that write a network as something else: a delta, a plain folder, what other programs read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import print_text


def delta(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The network that TUNED was trained from.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The fine-tuned network.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where the delta goes.")],
    to: Annotated[str, typer.Option("--to", metavar="BUDGET", help="bytes=2MB, or a share of TUNED.")] = "bytes=5%",
    json_: options.Json = False,
) -> None:
    """Keep a fine-tuned network as its base and a small file; BASE+FILE opens it again."""
    from isthmus.cli import tables
    from isthmus.flow import open as open_network
    from isthmus.flow.delta import delta_limit, make_delta

    network = open_network(tuned)
    made = make_delta(open_network(base), network, out, delta_limit(to, network))
    if json_:
        print_text(json.dumps(made, indent=1))
    else:
        tables.show_delta(made, base)


def load(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Any network, also BASE+FILE.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Write it out plainly.")] = None,
) -> None:
    """Open a network, a delta on its base included, and write it as a plain transformers folder."""
    from isthmus.cli import tables
    from isthmus.flow import open as open_network
    from isthmus.storage.artifact import check_output, save_artifact

    if out is not None:
        check_output(out)
    network = open_network(model)
    if out is not None:
        save_artifact(replace(network, codes={}), out, {"network": network.name, "opened_as": model})
    tables.show_loaded(network, out)


def export(
    model: options.Model,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the exported network goes.")],
    layout: Annotated[
        str,
        typer.Option("--layout", metavar="NAME", help="What reads it: compressed-tensors, openvino or onnxruntime."),
    ] = "compressed-tensors",
    bits: Annotated[
        int | None,
        typer.Option("--bits", metavar="4|8", help="Of the integers in compressed-tensors.", show_default="4"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="What an engine computes in: float32, float16, bfloat16, w8a8, int8 or int4.",
            show_default="float32",
        ),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            "--group",
            metavar="COLUMNS",
            help="Columns that share a scale; 0: a whole row.",
            show_default="that of MODEL's codes, or 32 for 4 bits and a row for 8",
        ),
    ] = None,
    task: options.GivenTask = None,
    json_: options.Json = False,
) -> None:
    """Write a network as other programs read it: integers for transformers and vLLM, or a file for an engine."""
    from isthmus import flow
    from isthmus.cli import tables
    from isthmus.flow.exporting import check_export
    from isthmus.flow.exporting import export as write_export

    check_export(out, layout, bits=bits, precision=precision, group=group, calibrated=task is not None)
    read = None if task is None else flow.task(task)
    made = write_export(flow.open(model), out, layout=layout, bits=bits, precision=precision, group=group, task=read)
    if json_:
        print_text(json.dumps(made, indent=1))
    else:
        tables.show_export(made, model)
