"""``isthmus cache``: the cache of a text as a file, to be stored or sent, and what goes on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli import options
from isthmus.cli.output import print_text

if TYPE_CHECKING:
    from isthmus.bottlenecks.cache.stream.prompts import Saved

app = typer.Typer(help="Keep the key-value cache of a text in a file.", rich_markup_mode=None)

Decoder = Annotated[str, typer.Argument(metavar="MODEL", help="A folder with a decoder.", show_default=False)]


@app.command()
def save(
    model: Decoder,
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="The text whose cache is saved.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where the cache goes.")],
    level: Annotated[int, typer.Option("--level", help="0: finest, 3: coarsest.")] = 1,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", metavar="MB/S", help="Of the line that it is to be sent over.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="SECONDS", help="When it is to have arrived there.")
    ] = None,
    json_: options.Json = False,
) -> None:
    """Read a text with a decoder, and save the keys and values that it would have to compute again."""
    options.check_writable(out)
    from isthmus.bottlenecks.cache.stream.prompts import save_prompt

    rate = None if bandwidth is None else bandwidth * 1e6
    _show(save_prompt(model, text, out, level=level, bandwidth=rate, deadline=deadline), json_, f"cache: {out}")


@app.command()
def load(
    model: Decoder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `isthmus cache save` wrote.")],
    tokens: Annotated[int, typer.Option("--tokens", help="How many to generate after the text.")] = 0,
    json_: options.Json = False,
) -> None:
    """Load a saved cache, check it, and let the decoder go on from it."""
    from isthmus.bottlenecks.cache.stream.prompts import load_prompt

    loaded = load_prompt(model, file, tokens=tokens)
    _show(loaded, json_, loaded.continuation)


def _show(saved: Saved, json_: bool, last: str) -> None:
    if json_:
        print_text(json.dumps(saved.as_json(), indent=1))
        return
    share = 100 * saved.bytes / saved.full_bytes
    print_text(f"{saved.tokens:,} tokens in {saved.bytes:,} bytes, {share:.1f} % of the cache in memory")
    print_text(f"levels: {', '.join(saved.levels)}")
    if last:
        print_text(last)
