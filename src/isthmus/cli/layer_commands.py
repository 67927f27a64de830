"""``isthmus layerwise``: narrow a decoder one layer at a time, in the memory of about two layers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import print_text
from isthmus.cli.progress import reporting


def layerwise(
    model: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with a decoder.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="BUDGET", help="params=60%, or bytes=60%.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the narrowed network goes.")],
    task: options.TaskSpec = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the layers of a run that was stopped.")] = False,
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Narrow a decoder that is too large to hold: each layer is read, cut, solved and written before the next."""
    spec = options.given_task(task)
    from isthmus import flow
    from isthmus.cli import tables
    from isthmus.cost.measure import high_water
    from isthmus.flow.layerwise import narrow_layerwise

    read = flow.task(spec)
    with reporting(quiet=quiet) as progress:
        made = narrow_layerwise(model, read, to, out, resume=resume, progress=progress)
    peak = high_water()
    if json_:
        found = {**asdict(made), "folder": str(made.folder), "peak_bytes": peak}
        print_text(json.dumps(found, indent=1))
        return
    (before, after), (size, left) = made.params, made.bytes
    kept = ", ".join(f"{count} {name.rpartition('.')[2]}" for name, count in made.kept.items())
    print_text(f"{after:,} of {before:,} parameters, {left:,} of {size:,} bytes; of each layer {kept} stay")
    print_text(f"the stream is off by {made.lost[-1]:.1%} behind the last layer; {peak / 1e9:.2f} GB held at most")
    tables.show_folder(out)
