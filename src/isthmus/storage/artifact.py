"""The artifact: a transformers folder with a record of how it was made, written as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isthmus.errors import BadArtifact, BadInput
from isthmus.network import Network
from isthmus.storage.files import canonical, existing_parent, sha256, sync, write_atomic, writing
from isthmus.storage.holders import write_coded
from isthmus.storage.weights import WEIGHTS_FILE, check_weight_files, check_weights, weight_files

RECORD_FILE = "isthmus.json"
ARTIFACT_VERSION = 1


def check_output(folder: str | Path) -> None:
    """Check, before any work, that an artifact can be written to ``folder``.

    Raises
    ------
    BadInput
        If it is a file, a folder that is not empty, or in a place that cannot be written to.
    """
    path = Path(folder)
    if path.is_dir():
        if any(path.iterdir()):
            raise BadInput(f"output {path}: the folder is not empty; give a new one, or empty it first")
    elif path.exists() or path.is_symlink():
        raise BadInput(f"output {path}: is a file; give a folder that does not exist yet")
    place = existing_parent(path.parent)
    if not place.is_dir():
        raise BadInput(f"output {path}: {place} is not a folder; give another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise BadInput(f"output {path}: {place} cannot be written to; give another place")


def save_artifact(network: Network, folder: str | Path, record: Mapping[str, Any]) -> None:
    """Write a network and the record of how it was made.

    Everything is written to a hidden folder beside ``folder``, brought to the disk, hashed, and only then given its
    name. Whatever happens on the way, nothing that looks finished is left.

    Parameters
    ----------
    network : Network
        Its model's config still has the shape that the model was built from.
    folder : str or Path
        Does not exist yet, or is empty.
    record : mapping
        Plan, seed, versions, fingerprints, measurements: anything that is JSON. ``version``, ``files`` and ``digest``
        are written here, over what may be there.

    Raises
    ------
    BadInput
        If the folder is not empty or cannot be written to, a weight is not finite, or the record is not JSON.
    IsthmusError
        If the disk is full.
    """
    path = Path(folder)
    check_output(path)
    check_weights(network.model.state_dict(), network.name)
    _check_record(record)
    partial = path.absolute().with_name(f".{path.absolute().name}.partial")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.model.parameters())
    try:
        with writing(path, needed=size):
            partial.parent.mkdir(parents=True, exist_ok=True)
            if partial.exists():  # left by a run that was killed
                shutil.rmtree(partial)
            partial.mkdir()
            _write_network(network, partial)
            finish_artifact(partial, path, record)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def finish_artifact(partial: Path, path: Path, record: Mapping[str, Any]) -> None:
    """Give a folder that holds a whole network its record and its name.

    Raises
    ------
    BadInput
        If the record is not JSON.
    """
    _check_record(record)
    _write_record(partial, {**record, "version": ARTIFACT_VERSION, "files": _inventory(partial)})
    _let_read(partial)
    _sync_all(partial)
    if path.exists():
        path.rmdir()
    os.rename(partial, path)
    sync(partial.parent)


def _check_record(record: Mapping[str, Any]) -> None:
    try:
        canonical(dict(record))
    except (TypeError, ValueError) as error:
        raise BadInput(f"record: cannot be written as JSON ({error}); use plain finite numbers and text") from None


def _write_network(network: Network, place: Path) -> None:
    from isthmus.storage.narrowing import describe_narrowing
    from isthmus.storage.processors import write_processor
    from isthmus.storage.sentences import write_sentence_files

    model: Any = network.model
    # Under the model's own names: transformers would give some families those of their first release back.
    model.save_pretrained(place, save_original_format=False)
    config_file = place / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    if network.codes:
        write_coded(place / WEIGHTS_FILE, network.codes)
    narrowing = describe_narrowing(model, coded={name: len(code) for name, code in network.codes.items()})
    if narrowing is not None:
        config["quantization_config"] = narrowing
    config_file.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if network.tokenizer is not None:
        network.tokenizer.save_pretrained(place)
        _reset_call_settings(place / "tokenizer.json")
    write_processor(network, place)
    write_sentence_files(network, place)


def _reset_call_settings(tokenizer_file: Path) -> None:
    """Leave padding and truncation of the last call out of the file, so that the same network gives the same file."""
    if tokenizer_file.exists():
        data = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        data["padding"] = data["truncation"] = None
        tokenizer_file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _inventory(place: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != RECORD_FILE)
    return {
        path.relative_to(place).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def _write_record(place: Path, record: Mapping[str, Any]) -> None:
    body = {name: value for name, value in record.items() if name != "digest"}
    digest = hashlib.sha256(canonical(body)).hexdigest()
    text = json.dumps({**body, "digest": digest}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomic(place / RECORD_FILE, text.encode())


def _let_read(place: Path) -> None:
    """Let others read the weights, which safetensors writes for the owner only."""
    for path in place.glob("*.safetensors"):
        path.chmod(0o644)


def _sync_all(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        sync(path)
    sync(place)


def read_record(folder: str | Path) -> dict[str, Any]:
    """Read the record of an artifact.

    Returns
    -------
    dict
        What was given to ``save_artifact``, with ``version``, ``files`` and ``digest``.

    Raises
    ------
    BadArtifact
        If it is missing, damaged, was edited, or is of a later version.
    """
    file = Path(folder) / RECORD_FILE
    try:
        record = json.loads(file.read_bytes())
    except OSError as error:
        raise BadArtifact(f"{file}: {error.strerror or error}; give a folder that isthmus saved") from None
    except ValueError:
        raise BadArtifact(f"{file}: not JSON, so truncated or damaged; restore it or narrow again") from None
    if not isinstance(record, dict) or type(record.get("version")) is not int:
        raise BadArtifact(f"{file}: not a record of isthmus; restore it or narrow again")
    if record["version"] > ARTIFACT_VERSION:
        raise BadArtifact(f"{file}: version {record['version']} is newer than {ARTIFACT_VERSION}; upgrade isthmus")
    body = {name: value for name, value in record.items() if name != "digest"}
    try:
        digest = hashlib.sha256(canonical(body)).hexdigest()
    except ValueError:
        digest = ""
    if record.get("digest") != digest:
        raise BadArtifact(f"{file}: was changed after it was written; restore it or narrow again")
    return record


def update_record(folder: str | Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the record of an artifact, such as what was measured on it, and return the new record.

    Raises
    ------
    BadArtifact
        If there is no sound record.
    BadInput
        If the changes are not JSON, or the file cannot be written.
    IsthmusError
        If the disk is full.
    """
    _check_record(changes)
    record = read_record(folder)
    record.update({name: value for name, value in changes.items() if name not in ("version", "files", "digest")})
    with writing(Path(folder) / RECORD_FILE):
        _write_record(Path(folder), record)
    return read_record(folder)


def verify_artifact(folder: str | Path) -> dict[str, Any]:
    """Check every file of an artifact against its record, and return the record.

    Raises
    ------
    BadArtifact
        Naming the first file that is missing, truncated or changed.
    """
    place = Path(folder)
    record = read_record(place)
    files = record.get("files")
    if not isinstance(files, dict) or not any(name.endswith(".safetensors") for name in files):
        raise BadArtifact(f"{place / RECORD_FILE}: lists no weight files; restore it or narrow again")
    for name, entry in files.items():
        _verify_file(place, name, entry)
    unlisted = [path.name for path in weight_files(place) if path.name not in files]
    if unlisted:
        raise BadArtifact(f"{place / unlisted[0]}: not part of this artifact; take it out of the folder")
    check_weight_files(place)
    return record


def _verify_file(place: Path, name: str, entry: Any) -> None:
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or not isinstance(entry, dict):
        raise BadArtifact(f"{place / RECORD_FILE}: lists {name!r}, which is no file of it; restore it or narrow again")
    path = place / relative
    if not path.is_file():
        raise BadArtifact(f"{path}: missing; restore it or narrow again")
    size = path.stat().st_size
    if size != entry.get("bytes"):
        word = "truncated" if isinstance(entry.get("bytes"), int) and size < entry["bytes"] else "changed"
        raise BadArtifact(f"{path}: {word} ({size} of {entry.get('bytes')} bytes); restore it or narrow again")
    if sha256(path) != entry.get("sha256"):
        raise BadArtifact(f"{path}: changed since it was written; restore it or narrow again")


__all__ = [
    "ARTIFACT_VERSION",
    "RECORD_FILE",
    "WEIGHTS_FILE",
    "check_output",
    "finish_artifact",
    "read_record",
    "save_artifact",
    "update_record",
    "verify_artifact",
]
