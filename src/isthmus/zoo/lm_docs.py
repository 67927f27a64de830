"""lm_docs: a small Llama of technical documents that recalls what was said long before, and the script that trains it.

Run ``python -m isthmus.zoo.lm_docs -o FOLDER``; a run that was stopped, however hard, goes on where it last saved.
Grouped-query attention (4 heads over 2), rotary positions, 8 layers of width 256, byte pairs of its own; 8.4 million
parameters. Three batches in ten hold recall lines (`isthmus.tasks.recall`). Text comes from the user.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import BadInput, IsthmusError
from isthmus.progress import Progress, silent
from isthmus.storage.files import canonical
from isthmus.storage.packing import pack, unpack
from isthmus.storage.stages import StageStore
from isthmus.tasks.recall import KINDS, Ids, Kind, recall, recalled
from isthmus.zoo.lm_docs_text import (
    VOCABULARY,
    Documents,
    default_files,
    encode,
    read_documents,
    train_tokenizer,
    wrapped,
)

_STATE, _TEXT = "training", "text"
_PATIENCE = 120.0  # seconds of work that may be lost
_EVALUATED = 32  # sequences of a measurement


@dataclass(frozen=True)
class Recipe:
    """How lm_docs is trained.

    Parameters
    ----------
    steps, batch, length : int
        Steps of so many sequences of so many tokens.
    rate : float
        The highest learning rate; it rises over ``warmup`` steps and falls as a cosine to a tenth.
    recall : float
        The share of sequences that are recall lines.
    positions : int
        That the network has; it is trained on ``length`` of them.
    """

    steps: int = 2500
    batch: int = 8
    length: int = 1024
    rate: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.1
    recall: float = 0.3
    seed: int = 0
    vocabulary: int = VOCABULARY
    width: int = 256
    inner: int = 768
    layers: int = 8
    heads: int = 4
    key_value_heads: int = 2
    positions: int = 4096

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.layers) < 1 or self.length < 128 or not 0 <= self.recall <= 1:
            raise BadInput(
                f"lm_docs: {self.steps} steps of {self.batch} sequences of {self.length} tokens, {self.recall} recall;"
                " give 1 or more, 128 or more, and a share"
            )


@dataclass(frozen=True)
class Measured:
    """What the network can do on documents that were held out: perplexity a token, and the share of recall answered."""

    perplexity: float
    recall: dict[str, float]


def build(recipe: Recipe) -> Any:
    """Return the network, untrained, the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def batch_of(recipe: Recipe, tokenizer: Any, text: Ids, step: int) -> Tensor:
    """Return the token ids of a step, ``(batch, length)``; they depend on the seed and the step alone.

    Short recall lines are followed by text, so that no place is padding.
    """
    random = np.random.default_rng((recipe.seed, step))
    rows = []
    for _ in range(recipe.batch):
        start = int(random.integers(0, len(text) - recipe.length))
        row = text[start : start + recipe.length]
        if random.random() < recipe.recall:
            kind: Kind = KINDS[int(random.integers(len(KINDS)))]
            # Short distances are learnt first, and lead on to long ones.
            size = int(random.integers(128, recipe.length + 1))
            made = recall(tokenizer, kind, size, random, text).ids
            row = np.concatenate([made, row[: recipe.length - len(made)]])
        rows.append(row)
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def rate_at(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def train(
    files: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    stop_after: int | None = None,
    save_every: int = 100,
    progress: Progress = silent,
) -> Measured | None:
    """Train the network, going on from where an earlier run of the same recipe last saved, and write it.

    Parameters
    ----------
    files : sequence of Path
        The documents.
    out : Path
        The folder that the network is written to; what is needed to go on lies in ``OUT.stages`` until then.
    stop_after : int or None
        Stop, saved, after so many steps in all: for a trial.

    Returns
    -------
    Measured or None
        None where it was stopped before the end.

    Raises
    ------
    BadInput
        If the text cannot be read, or ``out`` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out}: holds something already; give another folder")
    documents = read_documents(files)
    digest = hashlib.sha256(canonical(list(documents.train))).hexdigest()
    place = out.with_name(out.name + ".stages")
    stages = StageStore(place, {"recipe": asdict(recipe), "text": digest}, resume=True)
    tokenizer, text = _prepared(stages, documents, recipe, progress)
    if len(text) <= recipe.length:
        raise BadInput(f"lm_docs: {len(text)} tokens of text for sequences of {recipe.length}; give more text")
    model = build(recipe)
    optimizer = torch.optim.AdamW(_groups(model, recipe), lr=recipe.rate, betas=(0.9, 0.95))
    start = 0
    if stages.done(_STATE):
        tensors, data = stages.load(_STATE)
        held = unpack(tensors, data)
        model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        start = held["step"]
    last = min(recipe.steps, stop_after or recipe.steps)
    model.train()
    saved = time.monotonic()
    for step in range(start, last):
        loss = _step(model, optimizer, recipe, batch_of(recipe, tokenizer, text, step), rate_at(recipe, step))
        progress("training", step + 1, recipe.steps, f"{loss:.3f} nats")
        if (step + 1) % save_every == 0 or step + 1 == last or time.monotonic() - saved > _PATIENCE:
            state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "step": step + 1}
            stages.save(_STATE, *pack(state))
            saved = time.monotonic()
    if last < recipe.steps:
        return None
    found = measure(model, tokenizer, documents, recipe.length, seed=recipe.seed)
    write(model, tokenizer, out, {"recipe": asdict(recipe), "measured": asdict(found)})
    stages.clear()
    return found


def _prepared(stages: StageStore, documents: Documents, recipe: Recipe, progress: Progress) -> tuple[Any, Ids]:
    """Return the tokenizer and the text in its tokens, made once and kept."""
    if not stages.done(_TEXT):
        progress("preparing", 0, 2, "the vocabulary")
        tokenizer = train_tokenizer(documents.train, recipe.vocabulary)
        progress("preparing", 1, 2, "the text")
        text = torch.from_numpy(encode(tokenizer, documents.train))
        stages.save(_TEXT, {"text": text}, {"tokenizer": tokenizer.backend_tokenizer.to_str()})
    tensors, data = stages.load(_TEXT)
    return wrapped(data["tokenizer"]), tensors["text"].numpy()


def _groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    every = list(model.parameters())
    return [
        {"params": [one for one in every if one.ndim > 1], "weight_decay": recipe.decay},
        {"params": [one for one in every if one.ndim == 1], "weight_decay": 0.0},
    ]


def _step(model: Any, optimizer: Any, recipe: Recipe, ids: Tensor, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def measure(
    model: Any, tokenizer: Any, documents: Documents, length: int, *, seed: int = 0, count: int = _EVALUATED
) -> Measured:
    """Measure on held-out documents: perplexity, and of each kind of recall the share of answers that are whole."""
    model.eval()
    text = encode(tokenizer, documents.held_out)
    if len(text) < length:
        raise BadInput(f"lm_docs: {len(text)} tokens are held out, {length} are needed; give more text")
    nats = [_nats(model, text[at : at + length]) for at in np.linspace(0, len(text) - length, count).astype(int)]
    return Measured(
        math.exp(float(np.mean(nats))), recalled(model, tokenizer, length, text, seed=seed, count=count // 4)
    )


def _nats(model: Any, ids: Ids) -> float:
    given = torch.from_numpy(ids.astype(np.int64))[None]
    logits = model(given, use_cache=False).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits.float(), given[0, 1:]))


def write(model: Any, tokenizer: Any, out: Path, card: dict[str, Any]) -> None:
    """Write the network as float16, in files of at most 5 MB; the folder appears whole or not at all."""
    import shutil

    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.half().save_pretrained(partial, max_shard_size="5MB")
    model.float()
    tokenizer.save_pretrained(partial)
    (partial / "lm_docs.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return 0, or 2 with one line where something given cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m isthmus.zoo.lm_docs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the network goes")
    parser.add_argument("--data", type=Path, nargs="+", help="peps.txt and eips.txt; otherwise under ISTHMUS_DATA")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--length", type=int, default=Recipe.length)
    parser.add_argument("--stop-after", type=int, help="stop, saved, after so many steps")
    given = parser.parse_args(arguments)
    first: list[tuple[float, float]] = []

    def tell(stage: str, done: float, total: float, note: str = "") -> None:
        if stage != "training":
            print(f"{stage}: {note}", flush=True)
            return
        if not first:
            first.append((done, time.monotonic()))
        elif int(done) % 20 == 0 or done == total:
            seconds = (time.monotonic() - first[0][1]) / (done - first[0][0])
            left = seconds * (total - done) / 60
            print(f"step {int(done)} of {int(total)}: {note}, {seconds:.2f} s a step, {left:.0f} min left", flush=True)

    try:
        files = tuple(given.data) if given.data else default_files()
        recipe = Recipe(steps=given.steps, batch=given.batch, length=given.length)
        found = train(files, given.out, recipe, stop_after=given.stop_after, progress=tell)
    except IsthmusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
        return 130
    print("saved; run it again to go on" if found is None else json.dumps(asdict(found), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
