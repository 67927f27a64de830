"""The text that every machine has after the install: the documentation of Python and of what Isthmus depends on.

It is read from the source files, without importing them.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from isthmus.errors import BadInput
from isthmus.storage.files import write_atomic
from isthmus.tasks.passages import LONGEST_PASSAGE

PACKAGES = (
    "accelerate",
    "jinja2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "polars",
    "psutil",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "torch",
    "transformers",
    "typer",
)

# Python parses about 4 MB of source a second. The large packages are sampled, so that all of it takes seconds.
_BYTES_A_PACKAGE = 5_000_000
_LARGEST_FILE = 1_000_000  # larger ones are generated
_SKIPPED_FOLDERS = {"__pycache__", "_vendor", "dist-packages", "idlelib", "lib2to3", "site-packages"}
_TESTS = {"test", "tests", "testing"}

_LEAST_WORDS = 6
_LEAST_LETTERS = 0.75  # share of letters among what is not a space
_CODE = re.compile(
    r">>>|\.\.\. |==|->|[{}|\\]|--|__|</?\w+>|\w\(\w*=|^\s*[@$#:*+-]|^\s*\d+[.)] |^\s*\.\. |https?:", re.MULTILINE
)
_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_REFERENCE = re.compile(r"\s*\[[\w.-]+\]_?|`_+")
_WORD = re.compile(r"[^\sA-Za-z]*[A-Za-z]\S*")
_SENTENCE = re.compile(r"""["'(]?[A-Z].*[.!?]["')]?""")
_NAME = re.compile(r"\S*[a-z0-9_][A-Z]\S*|\S*[_\d]\S*|\b[A-Z]\S*")

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documentation_passages(limit: int = 20_000, *, seed: int = 0) -> tuple[str, ...]:
    """Return paragraphs of prose from documentation strings, and from Python's help topics.

    They differ from each other by more than names and numbers, and are in an order that depends on the seed and
    on the versions installed alone.

    Parameters
    ----------
    limit : int
        The most passages to return.
    seed : int

    Returns
    -------
    tuple of str
    """
    kept: dict[str, str] = {}
    for docstring in _docstrings():
        for paragraph in prose(docstring):
            # Generated documentation repeats one sentence for a hundred classes.
            kept.setdefault(_NAME.sub("", paragraph).lower(), paragraph)
    passages = list(dict.fromkeys(kept.values()))
    random.Random(seed).shuffle(passages)
    return tuple(passages[:limit])


def write_documentation(path: Path, limit: int = 20_000) -> int:
    """Write the passages to a file, one a line, and return how many there are.

    Raises
    ------
    BadInput
        If the file cannot be written, or no documentation is found.
    """
    passages = documentation_passages(limit)
    if not passages:
        raise BadInput(
            "no documentation in the installed packages: their source files are missing; give a text of your own"
        )
    try:
        write_atomic(path, "".join(f"{passage}\n" for passage in passages).encode())
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error
    return len(passages)


def prose(docstring: str) -> Iterator[str]:
    """Yield the paragraphs of a documentation string that are whole sentences, each on one line.

    Left out are code, tables, headings, lists, descriptions of parameters and short remarks.
    """
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.rstrip().splitlines()
        while lines and not lines[0].strip():
            lines = lines[1:]
        if not lines or len({len(line) - len(line.lstrip()) for line in lines}) > 1:
            continue  # a hanging indent: a parameter with its description, or a list
        if _CODE.search("\n".join(lines)) or len(lines[0]) - len(lines[0].lstrip()) > 8:
            continue
        text = _plain(" ".join(" ".join(lines).split()))
        if len(text) <= LONGEST_PASSAGE and _is_prose(text):
            yield text


def _plain(text: str) -> str:
    """Take the marks of reStructuredText and Markdown out of a paragraph, and keep its words."""
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", text))
    return " ".join(_REFERENCE.sub("", text).replace("`", "").replace("*", "").split())


def _is_prose(text: str) -> bool:
    if not _SENTENCE.fullmatch(text) or len(_WORD.findall(text)) < _LEAST_WORDS:
        return False
    visible = text.replace(" ", "")
    return sum(map(str.isalpha, visible)) >= _LEAST_LETTERS * len(visible)


def _docstrings() -> Iterator[str]:
    """Yield the documentation strings of Python and of the packages, in the order of packages and files."""
    library = Path(sysconfig.get_path("stdlib"))
    yield from _topics(library / "pydoc_data" / "topics.py")
    for root in (library, *(folder for name in PACKAGES for folder in _locations(name))):
        for file in _sampled(_sources(root)):
            yield from _docstrings_of(file)


def _locations(package: str) -> list[Path]:
    """Return the folders of an installed package; finding a top-level package does not import it."""
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def _sources(root: Path) -> list[tuple[Path, int]]:
    """Return the source files below a folder with their sizes in bytes, sorted, without tests."""
    found: list[tuple[Path, int]] = []
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _SKIPPED_FOLDERS and name not in _TESTS)
        paths = (Path(folder) / name for name in sorted(files) if name.endswith(".py"))
        found += [(path, size) for path in paths if 0 < (size := path.stat().st_size) <= _LARGEST_FILE]
    return found


def _sampled(files: list[tuple[Path, int]]) -> list[Path]:
    """Return files evenly spread over a package, as many as fit into the bytes a package may have."""
    total = sum(size for _, size in files)
    share = min(1.0, _BYTES_A_PACKAGE / total) if total else 1.0
    chosen: list[Path] = []
    seen = taken = 0
    for path, size in files:
        seen += size
        if taken + size <= seen * share:
            chosen.append(path)
            taken += size
    return chosen


def _docstrings_of(path: Path) -> Iterator[str]:
    tree = _parse(path)
    stack: list[ast.AST] = [] if tree is None else [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | _Definition) and (docstring := ast.get_docstring(node)):
            yield docstring
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _added(node.value)
        # The bodies of functions are not looked into: what they define is rarely documented, and they are long.
        if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try):
            stack += reversed(node.body)


def _added(call: ast.Call) -> Iterator[str]:
    """Yield the text that ``add_docstr(function, text)`` and ``add_newdoc(...)`` give to compiled functions."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name in ("add_docstr", "add_newdoc", "_add_docstr"):
        for argument in call.args:
            for node in ast.walk(argument):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                    yield inspect.cleandoc(node.value)


def _topics(path: Path) -> Iterator[str]:
    """Yield Python's help topics: the values of the dictionary in its module."""
    tree = _parse(path) if path.is_file() else None  # some systems keep the topics in a package of their own
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _parse(path: Path) -> ast.Module | None:
    """Return the syntax tree of a source file, None for one in another language version or encoding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's escape sequences
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # packages carry templates and files for later versions of Python
            return None
