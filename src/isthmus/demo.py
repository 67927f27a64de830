"""The demonstration: all-MiniLM-L6-v2 at half its parameters, on text that every machine has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadArtifact, BadInput
from isthmus.progress import Progress, silent

if TYPE_CHECKING:
    from isthmus.network import Network

BUDGET = "params=50%"
EFFORT = "faster"
_PAGE = "report.html"


@dataclass(frozen=True)
class Demo:
    """What the demonstration came to.

    Parameters
    ----------
    folder : Path
        The narrowed network.
    page : Path or None
        What was saved and what was lost, as a page.
    parameters : int
        Of the narrowed network, counted after plain transformers opened it.
    rows : list of dict
        The original and the narrowed network side by side, as ``compare`` gives them.
    """

    folder: Path
    page: Path | None
    parameters: int
    rows: list[dict[str, Any]]


def run(
    folder: Path, *, time: float = 360.0, progress: Progress = silent, say: Callable[[str], None] = lambda _: None
) -> Demo:
    """Narrow MiniLM to half its parameters and compare it with the original.

    A network that an earlier run finished is not made again, and a run that was stopped is gone on with.

    Parameters
    ----------
    folder : Path
        Where the network (``small``) and the page go.
    time : float
        Seconds that gates and recovery may take together.
    progress : Progress
    say : callable
        Takes lines for the user.

    Raises
    ------
    BadInput
        If MiniLM is not installed or the folder cannot be written to.
    """
    from isthmus import flow
    from isthmus.tasks.reading import DOCUMENTATION

    small = folder / "small"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made ({error.strerror}); give another folder with -o") from None
    original, task = flow.open("minilm"), flow.task(DOCUMENTATION)
    if (small / "isthmus.json").exists():
        say(f"{small} is there already, so it is only compared; take it away to make it again")
    else:
        say(f"all-MiniLM-L6-v2 to {BUDGET}, on the documentation of what is installed here")
        flow.narrow(original, task, to=BUDGET, effort=EFFORT, time=time, out=small, resume=True, progress=progress)
    page = _bring_page(small, folder / _PAGE)
    parameters = _opened_by_transformers(small, original)
    rows = flow.compare([original, flow.open(small)], task, progress=progress)
    return Demo(small, page, parameters, rows)


def _bring_page(small: Path, page: Path) -> Path | None:
    """Copy the page that belongs to the network next to it, where it is found at once."""
    made = small / _PAGE
    if made.exists():
        page.write_bytes(made.read_bytes())
    return page if page.exists() else None


def _opened_by_transformers(folder: Path, original: Network) -> int:
    """Open the network as any user of transformers would and return how many parameters it has.

    Raises
    ------
    BadArtifact
        If it is no smaller than the original.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    before = sum(parameter.numel() for parameter in original.model.parameters())
    if parameters >= before:
        raise BadArtifact(f"{folder}: has {parameters:,} parameters, no fewer than the original; remove it, run again")
    return int(parameters)
