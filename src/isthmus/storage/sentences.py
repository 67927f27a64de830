"""The files that sentence-transformers keeps beside a model, with the narrowed width."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from isthmus.errors import BadInput
from isthmus.network import Network

_KNOWN = ("Transformer", "Pooling", "Normalize")
_COPIED = ("sentence_bert_config.json", "config_sentence_transformers.json")


def write_sentence_files(network: Network, place: Path) -> None:
    """Write the files that make a folder a sentence-transformers model, if the original was one.

    Modules other than the encoder, its pooling and normalization (a dense layer, say) read a width that has changed
    and are no part of the network: then the folder stays a plain transformers one.

    Parameters
    ----------
    network : Network
        Its ``source`` is the folder that the original was read from.
    place : Path
        Where the model was saved.
    """
    source = network.source
    modules = _read(source / "modules.json") if source is not None else None
    if source is None or not isinstance(modules, list) or network.pooling == "logits":
        return
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds[:1] != ["Transformer"] or any(kind not in _KNOWN for kind in kinds):
        return
    width = embedding_width(network)
    inner = source / str(modules[0].get("path", ""))
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Transformer":
            module["path"] = ""
            continue
        path = str(module.get("path", ""))
        settings = _read(source / path / "config.json")
        if kind == "Pooling" and isinstance(settings, dict):
            for key in ("word_embedding_dimension", "embedding_dimension"):
                if key in settings:
                    settings[key] = width
        if isinstance(settings, dict) and path and Path(path).parts == (path,):
            (place / path).mkdir()
            _write(place / path / "config.json", settings)
    _write(place / "modules.json", modules)
    for name in _COPIED:
        found = inner / name if (inner / name).exists() else source / name
        if found.exists():
            shutil.copyfile(found, place / name)


def embedding_width(network: Network) -> int:
    """Return the width of the network's token states, found by running it on one token."""
    import torch

    device = next(network.model.parameters()).device
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    with torch.inference_mode():
        output: Any = network.model(input_ids=token, attention_mask=torch.ones_like(token))
    return int(output.last_hidden_state.shape[-1])


def _read(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BadInput(f"{path}: not JSON; mend it, or take it out to save a plain transformers folder") from None


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
