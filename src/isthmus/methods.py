"""What methods and measures there are, as data; `isthmus methods` and the tables in docs/ come from it."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isthmus.measures import listed
from isthmus.storage.files import write_atomic

_PACKAGE = Path(__file__).parent
_CLAIMS = _PACKAGE.parents[1] / "claims" / "results"
_RUN_BY = ("pytorch", "openvino", "onnxruntime")
_START, _END = "<!-- methods: written by make docs -->", "<!-- end of methods -->"


@dataclass(frozen=True)
class MethodInfo:
    """A method or a measure.

    Parameters
    ----------
    name : str
        What ``--method`` or ``--codes`` takes, or the name of a metric.
    role : {"method", "coder", "step", "measure"}
        A step is part of the flow: asked for by an option or a command of its own, or always taken.
    slug : str or None
        Its row in the catalogue of papers.
    family : str
        What it belongs to, such as ``structural-pruning``.
    file : str
        Where it is written, relative to the folder that holds the package.
    kinds : tuple of str
        The kinds of site that it serves; empty for a measure of whole networks.
    engines : tuple of str
        What runs its result.
    verdict : str or None
        Whether the claim of its paper held here; None where no claim has been tested.
    summary : str
        The first line of its docstring.
    """

    name: str
    role: Literal["method", "coder", "step", "measure"]
    slug: str | None
    family: str
    file: str
    kinds: tuple[str, ...]
    engines: tuple[str, ...]
    verdict: str | None
    summary: str


def methods() -> list[MethodInfo]:
    """Return every method of relevance, coder, step and measure, in the order of their registries."""
    from isthmus.bottlenecks.registry import CODERS
    from isthmus.relevance.registry import ESTIMATORS

    verdicts = read_verdicts(_CLAIMS)
    return [
        *(_method(name, make(), verdicts) for name, make in ESTIMATORS.items()),
        *(_coder(name, make(), verdicts) for name, make in CODERS.items()),
        *_steps(verdicts),
        *_measures(verdicts),
    ]


def _method(name: str, estimator: Any, verdicts: dict[str, str]) -> MethodInfo:
    slug = getattr(estimator, "slug", None) or None
    kinds = getattr(estimator, "kinds", ("width", "heads", "neurons", "layers", "vocabulary", "feature"))
    return MethodInfo(
        name=name,
        role="method",
        slug=slug,
        family=getattr(estimator, "family", "structural-pruning"),
        file=_file(type(estimator)),
        kinds=tuple(kinds),
        engines=_RUN_BY,
        verdict=verdicts.get(slug or "", verdicts.get(name)),
        summary=_summary(type(estimator)),
    )


def _coder(name: str, coder: Any, verdicts: dict[str, str]) -> MethodInfo:
    return MethodInfo(
        name=name,
        role="coder",
        slug=coder.slug,
        family=coder.family,
        file=_file(type(coder)),
        kinds=("matrix",),
        engines=_RUN_BY,
        verdict=verdicts.get(coder.slug or "", verdicts.get(name)),
        summary=_summary(type(coder)),
    )


def _steps(verdicts: dict[str, str]) -> list[MethodInfo]:
    from isthmus.allocation.joint import search
    from isthmus.bottlenecks.bits.after_training.registry import METHODS
    from isthmus.bottlenecks.tokens.narrowing import narrow_tokens
    from isthmus.bottlenecks.tokens.scores.information_degree import InformationDegree
    from isthmus.flow.activations import with_rounded_inputs
    from isthmus.flow.delta import make_delta
    from isthmus.flow.solving import solve
    from isthmus.recovery.tuned_codes import tune_codes

    units = ("width", "heads", "neurons")
    found: tuple[tuple[str, str | None, str, tuple[str, ...], Any, str], ...] = (
        (
            *("joint", "rd-layer-pruning", "allocation", (*units, "matrix"), search),
            "One price of a byte for units and codes alike, and the plan that loses least at it.",
        ),
        (
            *("solve", None, "structural-pruning", units, solve),
            "Projections solved anew after a cut, layer by layer, by least squares.",
        ),
        (
            *("tuned-codes", "pv-tuning", "codebook", ("matrix",), tune_codes),
            "Tables and indices of codes, tuned on the divergence from the original.",
        ),
        (
            *("activations", "int4-w4a4", "quantization", ("activations",), with_rounded_inputs),
            "What enters linear maps, rounded to a few bits a token and trained for.",
        ),
        (
            *("delta", "ere-delta", "deltas", ("matrix",), make_delta),
            "A fine-tuned network as changes of its base, of low rank and few bits.",
        ),
        (
            *("tokens", None, "token-reduction", ("tokens",), narrow_tokens),
            "Tokens that leave from layer to layer, by a score, an action and a schedule.",
        ),
        (
            *("information-degree", InformationDegree.slug, "token-reduction", ("tokens",), InformationDegree),
            "Tokens that are redundant and mean little leave; a score of `isthmus tokens`.",
        ),
    )
    ways = tuple(
        (one.name, one.slug, "quantization", ("matrix", "activations"), type(one), _summary(type(one)))
        for one in (make() for make in METHODS.values())
        if one.slug is not None
    )
    return [
        MethodInfo(name, "step", slug, family, _file(thing), kinds, _RUN_BY, verdicts.get(slug or name), summary)
        for name, slug, family, kinds, thing, summary in (*found, *ways)
    ]


def _measures(verdicts: dict[str, str]) -> list[MethodInfo]:
    return [
        MethodInfo(
            one.name,
            "measure",
            one.slug,
            one.family,
            _file(one.module),
            (),
            _RUN_BY,
            verdicts.get(one.slug or one.name),
            one.summary,
        )
        for one in listed()
    ]


def _file(thing: Any) -> str:
    source = inspect.getsourcefile(thing)
    path = Path(source or "")
    return path.relative_to(_PACKAGE.parent).as_posix() if path.is_relative_to(_PACKAGE.parent) else path.name


def _summary(thing: Any) -> str:
    lines = (inspect.getdoc(thing) or "").splitlines()
    return lines[0].strip().replace("``", "`") if lines else ""


def read_verdicts(folder: Path) -> dict[str, str]:
    """Return the verdict of each claim by the slug it is about.

    Parameters
    ----------
    folder : Path
        With one JSON file a claim, whose ``verdict`` is read; ``slug`` defaults to the file's name. A missing folder
        gives no verdicts: an installed package has no claims beside it.
    """
    verdicts: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and isinstance(data.get("verdict"), str):
            verdicts[str(data.get("slug", path.stem))] = data["verdict"]
    return verdicts


def markdown(infos: Sequence[MethodInfo]) -> str:
    """Return the tables of methods and of measures as Markdown."""
    parts = []
    headings = (
        ("method", "Methods of relevance"),
        ("coder", "Coders of matrices"),
        ("step", "Steps of the flow"),
        ("measure", "Measures"),
    )
    for role, heading in headings:
        rows = [info for info in infos if info.role == role]
        parts.append(f"## {heading}\n")
        parts.append("| name | what it does | paper | family | kinds of site | engines | claim | file |")
        parts.append("|---|---|---|---|---|---|---|---|")
        for info in rows:
            cells = (
                f"`{info.name}`",
                info.summary,
                f"`{info.slug}`" if info.slug else "",
                info.family,
                ", ".join(info.kinds),
                ", ".join(info.engines),
                info.verdict or "not tested",
                f"`{info.file}`",
            )
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts).rstrip("\n")


def write_docs(path: Path) -> None:
    """Write the tables into a Markdown file, between their two marks; what is around them stays."""
    before, after = "# Methods\n\n", "\n"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if _START in text and _END in text:
            before, after = text.split(_START)[0], text.split(_END)[1]
    write_atomic(path, f"{before}{_START}\n\n{markdown(methods())}\n\n{_END}{after}".encode())


if __name__ == "__main__":
    write_docs(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/methods.md"))
