"""A small language model that claims share: a decoder of six layers, trained on plain text.

No tuning for similarity, no labels: what its layers hold is what predicting words asks for. It is trained once a seed,
a minute on one core, and kept with what it was on the way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from claims.data import digest_of
from isthmus.errors import BadInput
from isthmus.network import Network, low_precision
from isthmus.storage.files import write_atomic
from isthmus.tasks.data import data_folder
from isthmus.tasks.tables import read_table

FILES = ("sst2/train.tsv", "stsb/train.csv", "text/wikitext2-valid.txt", "text/peps.txt")
KEPT = Path(__file__).resolve().parents[1] / "build" / "small_lm"
PEPS = 1_000_000
"""Characters: no more of the documents than of everything else."""
END, PADDING = "<end>", "<pad>"


@dataclass(frozen=True)
class Recipe:
    """How it is built and trained."""

    vocabulary: int = 2048
    width: int = 128
    layers: int = 6
    heads: int = 4
    steps: int = 600
    warmup: int = 40
    batch: int = 16
    length: int = 64
    rate: float = 2e-3
    kept: tuple[int, ...] = (0, 20, 50, 100, 200, 400, 600)
    """Steps whose weights are kept."""


RECIPE = Recipe()


@dataclass(frozen=True)
class Text:
    """Token ids of all training text in a row, and what made them."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    tokenizer: Any


@cache
def text(vocabulary: int = RECIPE.vocabulary) -> Text:
    """Return the training text and a vocabulary of byte pairs fitted to it.

    Raises
    ------
    BadInput
        If there is no folder of data.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    lines = _lines()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    special = [END, PADDING]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(lines, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[(END, raw.token_to_id(END))]
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=END, pad_token=PADDING, model_max_length=256
    )
    end = raw.token_to_id(END)
    parts = [[end, *found.ids] for found in raw.encode_batch(lines, add_special_tokens=False)]
    return Text(np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]), whole)


def _lines() -> list[str]:
    folder = data_folder()
    if folder is None:
        raise BadInput("small language model: no folder of data")
    reviews = [str(one) for one in read_table(folder / FILES[0]).columns[0]]
    pairs = read_table(folder / FILES[1]).columns
    sentences = [str(one) for column in pairs[:2] for one in column]
    wiki = (folder / FILES[2]).read_text(encoding="utf-8").replace("<unk>", "it").splitlines()
    documents = (folder / FILES[3]).read_text(encoding="utf-8")[:PEPS].split("\n\n")
    lines = [" ".join(one.split()).lower() for one in (*reviews, *sentences, *wiki, *documents)]
    return [one for one in dict.fromkeys(lines) if one]


def fresh(recipe: Recipe = RECIPE) -> Any:
    """Return a GPT-2 of random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = text(recipe.vocabulary).tokenizer
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=recipe.vocabulary, n_embd=recipe.width, n_layer=recipe.layers, n_head=recipe.heads,
            n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id,
        )
    )  # fmt: skip


def train(seed: int, recipe: Recipe = RECIPE) -> dict[int, dict[str, Tensor]]:
    """Return weights by step, of those steps that are to be kept."""
    torch.manual_seed(seed)
    model, ids = fresh(recipe).train(), text(recipe.vocabulary).ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmed(recipe))
    rng = np.random.default_rng(seed)
    found = {}
    for step in range(recipe.steps + 1):
        if step in recipe.kept:
            found[step] = {name: one.detach().clone().contiguous() for name, one in model.named_parameters()}
        if step == recipe.steps:
            break
        starts = rng.integers(0, len(ids) - recipe.length, recipe.batch)
        rows = torch.from_numpy(np.stack([ids[start : start + recipe.length] for start in starts]))
        with low_precision():
            loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return found


def _warmed(recipe: Recipe) -> Callable[[int], float]:
    def share(step: int) -> float:
        rising = min(1.0, (step + 1) / recipe.warmup)
        return rising * (0.55 + 0.45 * float(np.cos(np.pi * step / recipe.steps)))

    return share


def trained(seed: int, step: int | None = None, *, recipe: Recipe = RECIPE, kept: Path | None = None) -> Any:
    """Return the GPT-2 as it was after a step, the last by default; trained now if it was not before.

    Raises
    ------
    BadInput
        If weights of that step are not kept.
    """
    wanted = recipe.steps if step is None else step
    if wanted not in recipe.kept:
        raise BadInput(f"small language model: step {wanted} is not kept; the steps are {recipe.kept}")
    folder = (kept or KEPT) / f"{seed}-{_key(recipe)}"
    file = folder / f"{wanted}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for at, weights in train(seed, recipe).items():
            write_atomic(folder / f"{at}.safetensors", save(weights))
    model = fresh(recipe)
    with torch.no_grad():
        for name, one in load_file(file).items():
            model.get_parameter(name).copy_(one)
    return model.eval()


def encoder(seed: int, step: int | None = None, *, recipe: Recipe = RECIPE, kept: Path | None = None) -> Network:
    """Return the same as an encoder of texts: the mean of its last layer's states."""
    model = trained(seed, step, recipe=recipe, kept=kept)
    return Network("small decoder", model.transformer, text(recipe.vocabulary).tokenizer, "mean", True, 128)


def _key(recipe: Recipe) -> str:
    held = json.dumps([asdict(recipe), digest_of([text(recipe.vocabulary).ids])], sort_keys=True)
    return hashlib.sha256(held.encode()).hexdigest()[:12]


def fingerprint(recipe: Recipe = RECIPE) -> str:
    """Return the SHA-256 (hex) of the training text."""
    return digest_of([text(recipe.vocabulary).ids])
