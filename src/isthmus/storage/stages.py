"""Stages: results on the way, kept so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadInput
from isthmus.storage.files import canonical, sha256, sync, write_atomic, writing

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "stages.json"
_VERSION = 1
_MISSING = "(not given)"


class StageStore:
    """Named stages in a folder, each a set of tensors and some JSON, each written as a whole or not at all.

    Parameters
    ----------
    folder : str or Path
        Made when the first stage is saved.
    arguments : mapping
        What determines the result (network, task, budget, seed, ...), as JSON. Stages of a run with other
        arguments are never used.
    resume : bool
        Whether to go on with stages that are there; otherwise they are removed.

    Raises
    ------
    BadInput
        If asked to resume the stages of other arguments; the message says which one differs.

    Examples
    --------
    >>> store = StageStore("small.stages", {"seed": 0}, resume=True)
    >>> if not store.done("gates"):
    ...     store.save("gates", {"logits": logits}, {"steps": 200})
    >>> tensors, data = store.load("gates")
    """

    def __init__(self, folder: str | Path, arguments: Mapping[str, Any], *, resume: bool = False) -> None:
        self.folder = Path(folder)
        self.arguments: dict[str, Any] = json.loads(canonical(dict(arguments)))
        self.key = hashlib.sha256(canonical(self.arguments)).hexdigest()
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"stages {self.folder}: is a file; remove it or give another output folder")
        if resume:
            self._check_same()
        else:
            self.clear()

    def _check_same(self) -> None:
        index = self.folder / _INDEX
        if not index.exists():
            return
        try:
            found = json.loads(index.read_bytes())
            key, arguments, version = found["key"], dict(found["arguments"]), found["version"]
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"stages {index}: damaged; start again without --resume") from None
        if version != _VERSION:
            raise BadInput(f"stages {index}: written by another version of isthmus; start again without --resume")
        if key == self.key:
            return
        names = sorted(set(arguments) | set(self.arguments))
        name = next((name for name in names if arguments.get(name) != self.arguments.get(name)), "key")
        old, new = arguments.get(name, _MISSING), self.arguments.get(name, _MISSING)
        raise BadInput(
            f"stages {self.folder}: {name} was {_short(old)} when they were written and is {_short(new)} now; "
            "give the same arguments or start again without --resume"
        )

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise ValueError(f"a stage's name is small letters, digits, - and _, not {name!r}")
        return self.folder / f"{name}.stage.json"

    def _entry(self, name: str) -> dict[str, Any] | None:
        """Return what is written of a stage, if it is whole and of these arguments."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            entry = json.loads(path.read_bytes())
        except ValueError:
            return None
        if not isinstance(entry, dict) or entry.get("key") != self.key:
            return None
        tensors = self.folder / Path(str(entry.get("tensors"))).name
        return entry if tensors.is_file() and sha256(tensors) == entry.get("sha256") else None

    def done(self, name: str) -> bool:
        """Return whether a stage was saved whole, by a run with the same arguments."""
        return self._entry(name) is not None

    def save(self, name: str, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Save a stage, in place of an earlier one of that name.

        Parameters
        ----------
        name : str
        tensors : mapping of str to Tensor
        data : mapping
            JSON; see ``isthmus.storage.packing`` for nested states such as an optimizer's.

        Raises
        ------
        IsthmusError
            If the disk is full. An earlier stage of that name is kept.
        """
        from safetensors.torch import save_file

        path = self._path(name)
        contents = _apart(tensors)
        size = sum(tensor.numel() * tensor.element_size() for tensor in contents.values())
        partial = self.folder / f".{name}.partial"
        try:
            with writing(self.folder, needed=size):
                self.folder.mkdir(parents=True, exist_ok=True)
                index = {"version": _VERSION, "key": self.key, "arguments": self.arguments}
                write_atomic(self.folder / _INDEX, json.dumps(index, indent=1, sort_keys=True).encode())
                save_file(contents, partial)
                sync(partial)
                digest = sha256(partial)
                # The name tells the contents, so the JSON below, which is replaced at once, switches both over.
                target = self.folder / f"{name}.{digest[:16]}.safetensors"
                partial.replace(target)
                entry = {"key": self.key, "tensors": target.name, "sha256": digest, "data": dict(data)}
                write_atomic(path, json.dumps(entry, sort_keys=True).encode())
                for old in self.folder.glob(f"{name}.*.safetensors"):
                    if old != target:
                        old.unlink()
        finally:
            partial.unlink(missing_ok=True)

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and data of a stage.

        Raises
        ------
        BadInput
            If there is no such stage, or it is damaged.
        """
        from safetensors.torch import load

        entry = self._entry(name)
        if entry is None:
            raise BadInput(f"stages {self.folder}: {name} is missing or damaged; start again without --resume")
        # Read whole rather than mapped: the file may be replaced while the tensors are in use.
        tensors: dict[str, Tensor] = load((self.folder / entry["tensors"]).read_bytes())
        data: dict[str, Any] = entry["data"]
        return tensors, data

    def clear(self) -> None:
        """Remove all stages, and the folder if nothing else is in it."""
        if not (self.folder / _INDEX).is_file():  # nothing of ours
            return
        for path in sorted(self.folder.iterdir()):
            if re.fullmatch(r"[a-z0-9_-]+\.(stage\.json|[0-9a-f]{16}\.safetensors)|\.[a-z0-9_.-]+\.partial", path.name):
                path.unlink()
        (self.folder / _INDEX).unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two share memory, as the format wants it; only those that do are copied."""
    taken: set[int] = set()
    found = {}
    for key, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != own.numel() * own.element_size():
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        found[key] = own
    return found


def _short(value: Any) -> str:
    text = json.dumps(value) if value != _MISSING else _MISSING
    return text if len(text) <= 60 else text[:57] + "..."
