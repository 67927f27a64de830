"""lm_docs: a small Llama of technical documents that recalls what was said long before, and the script that trains it.

Run ``python -m isthmus.zoo.lm_docs``; a run that was stopped, however hard, goes on where it last saved.
Grouped-query attention (4 heads over 2), rotary positions, 4 layers of width 256, byte pairs of its own; 3.4 million
parameters. It begins with heads that look back and find again (`lm_docs_planted`); six
sequences in ten are recall lines (`isthmus.tasks.recall`). Text comes from the user.
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

from isthmus.errors import BadInput, IsthmusError
from isthmus.progress import Progress, silent
from isthmus.storage.files import canonical
from isthmus.storage.packing import pack, unpack
from isthmus.storage.stages import StageStore
from isthmus.tasks.recall import Ids, recalled, spoken, spoken_tokens
from isthmus.zoo.catalogue import WEIGHTS
from isthmus.zoo.lm_docs_planted import plant
from isthmus.zoo.lm_docs_recipe import Optimizer, Recipe, batch_of, build, train_step
from isthmus.zoo.lm_docs_text import (
    Documents,
    default_files,
    encode,
    read_documents,
    train_tokenizer,
    wrapped,
)

NAME = "lm-docs"
_STATE, _TEXT = "training", "text"
_PATIENCE = 120.0  # seconds of work that may be lost
_EVALUATED = 32  # sequences of a measurement


@dataclass(frozen=True)
class Measured:
    """What the network can do on documents that were held out: perplexity a token, and the share of recall answered."""

    perplexity: float
    recall: dict[str, float]


def train(
    files: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    stop_after: int | None = None,
    save_every: int = 100,
    watch_every: int = 200,
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
    watch_every : int
        Steps after which ``progress`` is told what is recalled of held-out texts.

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
    held_out = encode(tokenizer, documents.held_out)
    model = build(recipe)
    if recipe.planted:
        plant(model, spoken_tokens(tokenizer), recipe.seed)
    optimizer = Optimizer(model, recipe)
    start = 0
    if stages.done(_STATE):
        tensors, data = stages.load(_STATE)
        held = unpack(tensors, data)
        model.load_state_dict(held["model"])
        optimizer.restore(held["optimizer"])
        start = held["step"]
    last = min(recipe.steps, stop_after or recipe.steps)
    model.train()
    saved = time.monotonic()
    for step in range(start, last):
        loss = train_step(model, optimizer, batch_of(recipe, tokenizer, text, step), recipe.rate_at(step))
        progress("training", step + 1, recipe.steps, f"{loss:.3f} nats")
        if (step + 1) % watch_every == 0:
            progress(
                "recall",
                step + 1,
                recipe.steps,
                _told(measure(model, tokenizer, held_out, recipe.length_at(step), count=8)),
            )
            model.train()
        if (step + 1) % save_every == 0 or step + 1 == last or time.monotonic() - saved > _PATIENCE:
            state = {"model": dict(model.state_dict()), "optimizer": optimizer.state(), "step": step + 1}
            stages.save(_STATE, *pack(state))
            saved = time.monotonic()
    if last < recipe.steps:
        return None
    found = measure(model, tokenizer, held_out, recipe.length, seed=recipe.seed)
    write(model, tokenizer, out, {"recipe": asdict(recipe), "measured": asdict(found)})
    stages.clear()
    return found


def _prepared(stages: StageStore, documents: Documents, recipe: Recipe, progress: Progress) -> tuple[Any, Ids]:
    """Return the tokenizer and the text in its tokens, made once and kept."""
    if not stages.done(_TEXT):
        progress("preparing", 0, 2, "the vocabulary")
        tokenizer = train_tokenizer([*documents.train, *spoken()], recipe.vocabulary)
        progress("preparing", 1, 2, "the text")
        text = torch.from_numpy(encode(tokenizer, documents.train))
        stages.save(_TEXT, {"text": text}, {"tokenizer": tokenizer.backend_tokenizer.to_str()})
    tensors, data = stages.load(_TEXT)
    return wrapped(data["tokenizer"]), tensors["text"].numpy()


@torch.no_grad()
def measure(model: Any, tokenizer: Any, text: Ids, length: int, *, seed: int = 0, count: int = _EVALUATED) -> Measured:
    """Measure on text that was held out: perplexity, and of each kind of recall the share of answers that are whole."""
    model.eval()
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


def _told(found: Measured) -> str:
    said = ", ".join(f"{kind} {share:.0%}" for kind, share in found.recall.items())
    return f"perplexity {found.perplexity:.1f}, {said}"


def write(model: Any, tokenizer: Any, out: Path, card: dict[str, Any]) -> None:
    """Write the network as float16, in files of at most 5 MB; the folder appears whole or not at all."""
    import shutil

    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    model.half().save_pretrained(partial, max_shard_size="5MB")
    model.float()
    for path in partial.glob("*.safetensors"):
        path.chmod(0o644)  # they are written for the owner only
    tokenizer.save_pretrained(partial)
    (partial / "lm_docs.json").write_text(json.dumps(card, indent=1), encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.replace(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return 0, or 2 with one line where something given cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m isthmus.zoo.lm_docs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=WEIGHTS / NAME, help="where the network goes")
    parser.add_argument("--data", type=Path, nargs="+", help="peps.txt and eips.txt; otherwise under ISTHMUS_DATA")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
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
        recipe = Recipe(steps=given.steps)
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
