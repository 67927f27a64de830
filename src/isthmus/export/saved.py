"""Saved exports: what an artifact holds for an engine, such as a file in integers, is run as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadArtifact
from isthmus.export.engines import export_network
from isthmus.export.quantized import FLOAT, GROUP, export_quantized
from isthmus.storage.files import sha256

if TYPE_CHECKING:
    from isthmus.examples import Example
    from isthmus.network import Network


def precision_of(network: Network, engine: str) -> str:
    """Return the precision that a network's artifact was made for in an engine; float32 where nothing is said."""
    return str(_entry(network, engine).get("precision", FLOAT))


def exported(network: Network, engine: str, folder: str | Path) -> Path:
    """Return the file that an engine runs: the artifact's own, or a float32 one written into ``folder``.

    Raises
    ------
    BadArtifact
        If the artifact names a file that it does not hold, or that was changed.
    """
    entry = _entry(network, engine)
    if not entry or network.source is None:
        return export_network(network, engine, folder)
    root = Path(network.source).resolve()
    path = (root / str(entry.get("file"))).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise BadArtifact(f"{network.source}: isthmus.json names {entry.get('file')!r}, which is not there; restore it")
    for name, digest in dict(entry.get("files") or {}).items():
        file = path.parent / Path(str(name)).name
        if not file.is_file() or sha256(file) != digest:
            raise BadArtifact(f"{file}: truncated or changed since it was written; restore it or narrow again")
    return path


def save_export(
    network: Network, engine: str, precision: str, examples: Sequence[Example], folder: Path, *, group: int = GROUP
) -> dict[str, Any]:
    """Write a network for an engine into its artifact and return what the record says of it.

    Parameters
    ----------
    examples : sequence of str or of Image
        What activations are calibrated on.
    folder : Path
        The artifact's.
    group : int
        Inputs that share a scale in ``int4``.
    """
    path = export_quantized(network, engine, precision, examples, folder / engine, group=group)
    files = sorted(path.parent.iterdir())
    entry = {
        "precision": precision,
        "file": path.relative_to(folder).as_posix(),
        "bytes": sum(file.stat().st_size for file in files),
        "files": {file.name: sha256(file) for file in files},
    }
    return {engine: entry}


def _entry(network: Network, engine: str) -> dict[str, Any]:
    exports = network.record.get("exports")
    entry = exports.get(engine) if isinstance(exports, dict) else None
    return entry if isinstance(entry, dict) else {}
