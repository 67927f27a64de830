"""Saving the cache of a text, and loading it to go on from there: what ``isthmus cache`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus.bottlenecks.cache.stream import file as files
from isthmus.bottlenecks.cache.stream.coding import LEVELS
from isthmus.bottlenecks.cache.stream.sending import TEXT, best_level
from isthmus.errors import BadInput
from isthmus.storage.files import write_atomic, writing


@dataclass(frozen=True)
class Saved:
    """What a file of a cache holds.

    Parameters
    ----------
    tokens : int
    bytes : int
        Of the file.
    full_bytes : int
        Of the cache as the network holds it.
    levels : tuple of str
        Of each chunk.
    continuation : str
        What the network says after the prompt; empty where it was not asked.
    """

    tokens: int
    bytes: int
    full_bytes: int
    levels: tuple[str, ...]
    continuation: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def open_decoder(folder: str) -> tuple[Any, Any]:
    """Return a decoder and its tokenizer, from a folder.

    Raises
    ------
    BadInput
        If there is none, or it cannot be opened.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(folder).is_dir():
        raise BadInput(
            f"network {folder}: no such folder; give one that holds config.json, the weights and a tokenizer"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"network {folder}: no decoder that transformers opens ({reason}); give another folder"
        ) from None
    return model.eval(), tokenizer


def read_text(path: Path) -> str:
    """Return a text.

    Raises
    ------
    BadInput
        If it is missing, empty or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInput(f"text {path}: cannot be read ({reason}); give a text file") from None
    if not text.strip():
        raise BadInput(f"text {path}: is empty; give a text file")
    return text


def levels_for(sizes: Sequence[Sequence[int]], bandwidth: float, deadline: float) -> list[int]:
    """Return the level of each chunk at a steady bandwidth, the finest that arrive in time.

    Parameters
    ----------
    sizes : sequence of sequence of int
        Bytes of each chunk at every level.
    bandwidth : float
        Bytes a second.
    deadline : float
        Seconds.

    Raises
    ------
    BadInput
        If even the coarsest level does not arrive in time.
    """
    coarsest = sum(own[-1] for own in sizes)
    if not (bandwidth > 0 and deadline > 0 and coarsest <= bandwidth * deadline):
        need = f"at least {coarsest / bandwidth:.3g} s" if bandwidth > 0 else "a bandwidth above 0"
        raise BadInput(
            f"cache: {coarsest} bytes at the coarsest level do not arrive in {deadline:g} s at {bandwidth:g} bytes a"
            f" second; give {need}"
        )
    now, chosen = 0.0, []
    for index, own in enumerate(sizes):
        level = best_level(sizes[index:], bandwidth, deadline - now)
        assert level != TEXT
        chosen.append(level)
        now += own[level] / bandwidth
    return chosen


def save_prompt(
    folder: str,
    text: Path,
    out: Path,
    *,
    level: int = 1,
    bandwidth: float | None = None,
    deadline: float | None = None,
) -> Saved:
    """Read a text with a decoder and save its cache.

    Parameters
    ----------
    level : int
        A place in `LEVELS`, for all chunks, where no bandwidth is given.
    bandwidth, deadline : float or None
        Bytes a second and seconds: the level of each chunk follows from both.

    Raises
    ------
    BadInput
        If something given cannot be used.
    """
    if (bandwidth is None) != (deadline is None):
        raise BadInput("cache: give a bandwidth and a deadline together, or a level")
    if not 0 <= level < len(LEVELS):
        raise BadInput(f"cache: level {level}; choose 0 (finest) to {len(LEVELS) - 1}")
    words = read_text(text)
    model, tokenizer = open_decoder(folder)
    prompt = files.prompt_of(model, tokenizer(words)["input_ids"])
    chosen: int | list[int] = level
    if bandwidth is not None and deadline is not None:
        sizes = [[len(one) for one in own] for own in files.encode_chunks(prompt)]
        chosen = levels_for(sizes, bandwidth, deadline)
    data = files.to_bytes(model, prompt, chosen)
    with writing(out, needed=len(data)):
        write_atomic(out, data)
    return _told(model, prompt, data)


def load_prompt(folder: str, path: Path, *, tokens: int = 0) -> Saved:
    """Load a saved cache, and let the decoder go on from it.

    Parameters
    ----------
    tokens : int
        How many to generate, greedily; 0: none.

    Raises
    ------
    BadInput
        If the file or the network is missing.
    BadArtifact
        If the file is damaged, or of another network.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cache file {path}: cannot be read ({error.strerror}); give a file that was saved") from None
    if tokens < 0:
        raise BadInput(f"cache: {tokens} tokens to generate; give 0 or more")
    files.read_header(data)
    model, tokenizer = open_decoder(folder)
    prompt = files.from_bytes(model, data)
    said = ""
    if tokens:
        # The last token is read again, for what comes after it is not in a cache.
        cache = files.cache_of(model, prompt)
        cache.crop(-1)
        ids = torch.tensor([list(prompt.ids)])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=tokens, do_sample=False
        )
        said = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return _told(model, prompt, data, said)


def _told(model: Any, prompt: files.Prompt, data: bytes, said: str = "") -> Saved:
    item = torch.finfo(model.dtype).bits // 8
    full = sum(one.size * item for one in (*prompt.keys, *prompt.values))
    levels = tuple(LEVELS[level].name for level in files.read_header(data).levels)
    return Saved(len(prompt.ids), len(data), full, levels, said)
