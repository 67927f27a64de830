"""How lm_docs is trained: its shape, its batches and the step, each decided by the seed and the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import BadInput
from isthmus.network import has_bfloat16
from isthmus.tasks.recall import KINDS, LEAST, SHORTEST, Ids, Kind, recall
from isthmus.zoo.lm_docs_text import VOCABULARY


@dataclass(frozen=True)
class Recipe:
    """How lm_docs is trained.

    Parameters
    ----------
    steps : int
    batch : int
        Sequences of a step at the last length; shorter ones are as many more, so that each step has as many tokens.
    lengths, shares : tuple
        Tokens of a sequence from stage to stage, and which share of the steps each stage has. What is far back is found
        only once what is near is.
    rate : float
        The highest learning rate; it rises over ``warmup`` steps and falls as a cosine to a tenth.
    recall : float
        The share of sequences that are recall lines.
    positions : int
        That the network has; it is trained on the first of them.
    planted : bool
        Whether it begins with heads that look back and find again; see `isthmus.zoo.lm_docs_planted`.
    """

    steps: int = 700
    batch: int = 2
    lengths: tuple[int, ...] = (256, 512, 1024)
    shares: tuple[float, ...] = (0.6, 0.2, 0.2)
    rate: float = 3e-3
    warmup: int = 50
    decay: float = 0.01
    recall: float = 0.6
    seed: int = 0
    vocabulary: int = VOCABULARY
    width: int = 256
    inner: int = 512
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    positions: int = 4096
    planted: bool = True

    def __post_init__(self) -> None:
        stages = f"{self.lengths} tokens for {self.shares} of the steps"
        if min(self.steps, self.batch, self.layers) < 1 or not 0 <= self.recall <= 1:
            raise BadInput(
                f"lm_docs: {self.steps} steps of {self.batch}, {self.recall} recall; give 1 or more, and a share"
            )
        if len(self.lengths) != len(self.shares) or not self.lengths or abs(sum(self.shares) - 1) > 1e-6:
            raise BadInput(f"lm_docs: {stages}; give a share for each length, 1 in all")
        if min(self.lengths) < SHORTEST or max(self.lengths) > self.positions:
            raise BadInput(f"lm_docs: {stages}; give {SHORTEST} or more, and no more than {self.positions} positions")

    @property
    def length(self) -> int:
        """The tokens of a sequence at the end of training."""
        return self.lengths[-1]

    def length_at(self, step: int) -> int:
        """Return the tokens of a sequence of this step."""
        done = 0.0
        for length, share in zip(self.lengths, self.shares, strict=True):
            done += share * self.steps
            if step < round(done):
                return length
        return self.length

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


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
        attention_bias=True,  # by which heads can look at a distance
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
        },  # most channels hardly turn in a few thousand tokens
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def batch_of(recipe: Recipe, tokenizer: Any, text: Ids, step: int) -> Tensor:
    """Return the token ids of a step, ``(batch, length)``; they depend on the seed and the step alone.

    A sequence is text, or recall lines one after another and text behind them, so that no place is padding.
    """
    random = np.random.default_rng((recipe.seed, step))
    length = recipe.length_at(step)
    rows = []
    for _ in range(max(1, recipe.batch * recipe.length // length)):
        start = int(random.integers(0, len(text) - length))
        row = text[start : start + length]
        if random.random() < recipe.recall:
            row = np.concatenate([*_lines(tokenizer, text, length, random), row])[:length]
        rows.append(row)
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def _lines(tokenizer: Any, text: Ids, length: int, random: np.random.Generator) -> list[Ids]:
    """Return recall lines of random kinds and sizes that fill a sequence; what is left is shorter than any."""
    lines = []
    left = length
    while left >= LEAST:
        kind: Kind = KINDS[int(random.integers(len(KINDS)))]
        # Short distances are learnt first, and lead on to long ones: sizes are even in their logarithm.
        size = int(LEAST * (left / LEAST) ** random.random())
        lines.append(recall(tokenizer, kind, size, random, text).ids)
        left -= len(lines[-1])
    return lines


class Optimizer:
    """Muon for the matrices between layers and AdamW for embeddings and norms, at one learning rate.

    Muon (Jordan et al. 2024) makes each step of a matrix orthogonal; scaled to the size of AdamW's steps (Liu et al.
    2025) it takes the same rate. In trials of lm_docs recall came in fewer tokens with it.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        inner = [one for name, one in model.named_parameters() if one.ndim == 2 and "embed" not in name]
        outer = [one for name, one in model.named_parameters() if one.ndim != 2 or "embed" in name]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(inner, lr=recipe.rate, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=recipe.rate, weight_decay=0.0, betas=(0.9, 0.95)),
        )

    def step(self, rate: float) -> None:
        """Take a step at a learning rate, and forget the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """Return what is needed to go on."""
        return [part.state_dict() for part in self.parts]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `state` returned."""
        for part, held in zip(self.parts, state, strict=True):
            part.load_state_dict(held)


def train_step(model: Any, optimizer: Optimizer, ids: Tensor, rate: float) -> float:
    """Take a step on a batch; return its loss in nats a token."""
    # Fused attention, whose backward pass is the faster one where rows are long.
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        logits = model(ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(rate)
    return float(loss.detach())
