"""What the commands' options mean, and reading those that are not plain text."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from isthmus.budget import parse_budget, parse_floor
from isthmus.errors import BadInput

EFFORTS = ("none", "faster", "fast", "full")
DOCUMENTATION = "documentation"
NO_TASK = (
    "no task given: be like the original on the documentation of what is installed here; say what the network is for "
    "with --task text:FILE (a file of text, one passage a line), lm:FILE, sts:FILE, classify:FILE or images:FOLDER"
)
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="minilm, a folder, one of the zoo, or a hub id.", show_default=False)
]
Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Networks; the first is what they are held against.")
]
_TASK = "What the network is for: text:, lm:, sts:, classify: or images:PATH, or documentation."
TaskSpec = Annotated[str | None, typer.Option("--task", metavar="TASK", help=_TASK, show_default="documentation")]
GivenTask = Annotated[str | None, typer.Option("--task", metavar="TASK", help=_TASK)]
"""Where what it is for is not guessed."""
To = Annotated[str | None, typer.Option("--to", metavar="BUDGET", help="The budget: params=50%,latency=0.5x.")]
Keep = Annotated[str | None, typer.Option("--keep", metavar="SHARE", help="The floor of quality: 98%.")]
Method = Annotated[str, typer.Option("--method", metavar="NAME", help="Relevance; see isthmus methods.")]
Effort = Annotated[
    str, typer.Option("--effort", metavar="|".join(EFFORTS), help="How long to work for the best result.")
]
Codes = Annotated[
    str, typer.Option("--codes", metavar="NAME,...", help="How bytes may be saved besides taking units away; or none.")
]
Sites = Annotated[
    str, typer.Option("--sites", metavar="KIND,...", help="Which kinds of sites may lose units: all, or none.")
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="What the engine computes in: float32, float16, bfloat16, w8a8, int8 or int4.",
    ),
]
Activations = Annotated[
    int | None,
    typer.Option("--activations", metavar="BITS", help="Round what enters linear maps to so many bits: 2 to 8."),
]
Time = Annotated[str | None, typer.Option("--time", metavar="20min", help="At most this long: 90s, 20min or 1h.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same artifact.")]
PlanSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Same seed, same artifact.", show_default="the plan's, or 0")
]
EngineName = Annotated[str, typer.Option("--engine", metavar="NAME", help="What will run the result.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def given_task(spec: str | None) -> str:
    """Return the task that was given, or else the one that needs no data, and say so on stderr."""
    if spec is None:
        sys.stderr.write(NO_TASK + "\n")
        return DOCUMENTATION
    return spec


def labelled_task(spec: str | None, choices: str) -> str:
    """Return the task that was given.

    Raises
    ------
    BadInput
        If none was, and labels cannot be done without.
    """
    if spec is None:
        raise BadInput(f"no task given; labels are needed here, give --task {choices}")
    return spec


def folder_for(out: Path | None, model: str, to: str | None, keep: str | None, plan: Path | None) -> Path:
    """Return where a narrowed network goes: where it is wanted, or ``minilm-bytes-5MB`` in the current folder."""
    if out is not None:
        return out
    goal = to or (f"keep {keep}" if keep else plan.stem if plan else "")
    name = Path(model.partition("=")[0]).name or model
    return Path(re.sub(r"[^\w.+-]+", "-", f"{name}-{goal}").strip("-"))


def choice(option: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises
    ------
    BadInput
        If it is not; the nearest is suggested.
    """
    if value in choices:
        return value
    near = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "give one of " + ", ".join(choices)
    raise BadInput(f"{option} {value!r}: unknown; {hint}")


def words(text: str) -> list[str]:
    """Read names parted by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def integers(option: str, text: str) -> list[int]:
    """Read whole numbers parted by commas.

    Raises
    ------
    BadInput
        If there are none, or one is no number.
    """
    parts = words(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise BadInput(f"{option} {text!r}: not numbers; write for example 90,50,10")
    return [int(part) for part in parts]


def seconds(text: str | None) -> float | None:
    """Read a time such as ``90s``, ``20min`` or ``1h`` and return it in seconds.

    Raises
    ------
    BadInput
        If it is not a time above zero.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", text.strip().lower())
    factor = _SECONDS.get(match[2]) if match else None
    if match is None or factor is None or float(match[1]) <= 0:
        raise BadInput(f"--time {text!r}: not a time; write for example 90s, 20min or 1h")
    return float(match[1]) * factor


def check_goal(to: str | None, keep: str | None, plan: Path | None = None, *, plans: bool = False) -> None:
    """Check that exactly one goal was given and can be read, before anything is opened.

    Raises
    ------
    BadInput
        If none was given, or more than one.
    BadBudget
        If a budget or a floor cannot be read.
    """
    given = [value for value in (to, keep, plan) if value is not None]
    if len(given) != 1:
        goals = "--to params=50%, --keep 98%" + (", --plan FILE" if plans else "")
        what = "no budget given; give one" if not given else "more than one goal given; keep one"
        raise BadInput(f"{what} of {goals}")
    if to is not None:
        parse_budget(to)
    if keep is not None:
        parse_floor(keep)


def check_writable(path: Path | None) -> None:
    """Check that a file can be written where it is wanted, before the work rather than after it.

    Raises
    ------
    BadInput
        If its folder is missing, or it is a folder itself.
    """
    if path is None or path == Path("-"):
        return
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist; make it or choose another")
