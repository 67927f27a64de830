"""Contrastive variational information bottleneck (Chang et al. 2023): a token that goes with the label by chance.

Fifteen trainings of a small encoder: a minute and a half on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.information.training.cvib import CvibLoss, InformationGates
from isthmus.network import tokenize
from isthmus.storage.opening import open as open_network
from isthmus.tasks import load_task
from isthmus.tasks.data import data_folder
from isthmus.tasks.task import Task

PLAIN, GATES, OURS = "plain", "gates without contrast", "cvib"
RATES = (1e-4, 1e-3)
"""Weights of the nats that pass the gates."""
PLANTED = 1
"""The number of an unused entry of the vocabulary."""
OFTEN = 0.9
"""Of positive training sentences that carry the token, and of negative ones that do not."""
TRAINED, LONGEST, WIDTH, HEADS, DEPTH, EPOCHS, BATCH, RATE, GATE_RATE = 2000, 32, 64, 4, 2, 5, 64, 1e-3, 2e-2
CLOSE = 0.01


@dataclass(frozen=True)
class Split:
    """Sentences as token ids ``(sentences, tokens)``, 0 where there is none, and labels."""

    ids: Tensor
    labels: Tensor


@cache
def _task() -> Task:
    folder = data_folder()
    if folder is None:
        raise BadInput("cvib: skipped, no folder of data")
    return load_task(f"classify:{folder / 'sst2'}")


@cache
def _words() -> tuple[Any, Tensor]:
    network = open_network("minilm")
    table: Any = network.model.get_input_embeddings()  # type: ignore[operator]
    return network, table.weight.detach()


def read(rows: Sequence[tuple[Any, int]]) -> Split:
    """Return sentences with a place behind the first token that is left free for another one."""
    network, _ = _words()
    ids = tokenize(network, [str(text) for text, _ in rows])["input_ids"][:, : LONGEST - 1]
    free = torch.cat([ids[:, :1], torch.zeros(len(ids), 1, dtype=ids.dtype), ids[:, 1:]], 1)
    return Split(free, torch.tensor([label for _, label in rows]))


def planted(split: Split, often: Sequence[float], seed: int) -> Split:
    """Return sentences of which some carry the token: a share of those of either label."""
    chance = torch.tensor(often)[split.labels]
    drawn = torch.rand(len(chance), generator=torch.Generator().manual_seed(seed)) < chance
    ids = split.ids.clone()
    ids[drawn, 1] = PLANTED
    return Split(ids, split.labels)


@cache
def data(seed: int) -> tuple[Split, Split, Split]:
    """Return what is trained on, what is tested without the token, and with it the other way round."""
    task = _task()
    places = np.random.default_rng(seed).permutation(len(task.labelled))[:TRAINED]
    clean = read(list(zip(task.held_out.examples, task.held_out.labels, strict=True)))
    whole = read([task.labelled[place] for place in places])
    return planted(whole, (1 - OFTEN, OFTEN), seed), clean, planted(clean, (OFTEN, 1 - OFTEN), seed)


class Block(nn.Module):
    """Attention and two linear maps, a layer norm before each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.joined, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return states ``(batch, tokens, width)``; ``mask`` is true where there is a token."""
        query, key, value = self.joined(self.norm(states)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        states = states + self.back(mixed.transpose(1, 2).flatten(2))
        found: Tensor = states + self.down(nn.functional.gelu(self.up(self.other_norm(states))))
        return found


class Classifier(nn.Module):
    """Frozen word embeddings of MiniLM, made narrower, two blocks, the mean over tokens, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(_words()[1].shape[1], WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LONGEST, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return representations ``(batch, width)`` and logits ``(batch, 2)``."""
        mask = ids > 0
        states = self.narrow(10 * _words()[1][ids]) + self.places[: ids.shape[1]]
        for block in self.blocks:
            states = block(states, mask)
        weights = mask[..., None].float()
        pooled = (self.norm(states) * weights).sum(1) / weights.sum(1)
        return pooled, self.head(pooled)


def gates_of(model: nn.Module) -> InformationGates:
    """Return gates on what enters the first block and on the inner units of each."""
    return InformationGates(model, {"narrow": WIDTH, **{f"blocks.{place}.up": 2 * WIDTH for place in range(DEPTH)}})


def train(arm: str, rate: float, seed: int) -> tuple[Classifier, InformationGates]:
    """Return a classifier and its gates, which plain training leaves alone."""
    torch.manual_seed(seed)
    model, own = Classifier(), data(seed)[0]
    gates = gates_of(model)
    loss = CvibLoss(contrast_weight=0.1 if arm == OURS else 0.0, rate_weight=rate)
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters(), "lr": RATE}, {"params": gates.parameters(), "lr": GATE_RATE, "weight_decay": 0}]
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(own.labels), generator=generator), BATCH):
            ids, labels = own.ids[rows], own.labels[rows]
            if arm == PLAIN:
                value = nn.functional.cross_entropy(model(ids)[1], labels)
            else:
                value = loss(lambda ids=ids: model(ids), gates, labels).loss  # type: ignore[misc]
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
    return model.eval(), gates


def accuracy(model: Classifier, split: Split, gates: InformationGates | None = None) -> float:
    """Return the share of sentences that are classified right, seen through gates where some are given."""
    with torch.no_grad(), gates.applied() if gates else nullcontext():
        return float((model(split.ids)[1].argmax(1) == split.labels).double().mean())


def measure(point: Point) -> Mapping[str, Any]:
    """Train one classifier; test it without the token and with the token the other way round."""
    model, gates = train(point.arm, point.level, point.seed)
    _, clean, turned = data(point.seed)
    # What gates without contrast make is the narrowed network; the contrast is there for the network itself.
    seen = gates if point.arm == GATES else None
    found = {"clean": accuracy(model, clean, seen), "turned": accuracy(model, turned, seen)}
    found["lost"] = found["clean"] - found["turned"]
    if point.arm == OURS:
        found["lost, narrowed"] = accuracy(model, clean, gates) - accuracy(model, turned, gates)
    if point.arm != PLAIN:
        found["closed"] = float(torch.cat(list(gates.closed().values())).double().mean())
    return found


def loses_less(outcomes: Sequence[Outcome], other: str, name: str) -> Part:
    """Decide whether accuracy suffers less where the token goes with the other label."""
    rule = (
        f"at both weights of nats, what is lost where the token goes with the other label is less than with `{other}` "
        "by more than twice the standard error of paired differences; mixed: at one; does not hold: at none"
    )
    passed, texts = [], []
    for rate in RATES:
        own, theirs = (
            of_arm(outcomes, OURS, rate, "lost"),
            of_arm(outcomes, other, rate if other == GATES else 0, "lost"),
        )
        if len(own) < 2 or len(own) != len(theirs):
            return part_of(name, rule, UNTESTED)
        gap, error = paired(own, theirs)
        passed.append(gap < 0 and gap < -2 * error)
        texts.append(f"{rate:g}: {100 * np.mean(own):.1f} against {100 * np.mean(theirs):.1f} points")
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of(name, rule, verdict, "; ".join(texts))


def as_good(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether it is as good where there is no token."""
    rule = (
        f"without the token, accuracy is at most {100 * CLOSE:g} point below that of plain training in the mean over "
        "seeds, at both weights; mixed: at one; does not hold: at none"
    )
    passed, texts = [], []
    plain = of_arm(outcomes, PLAIN, 0.0, "clean")
    for rate in RATES:
        own = of_arm(outcomes, OURS, rate, "clean")
        if not own or len(own) != len(plain):
            return part_of("accuracy without the token", rule, UNTESTED)
        passed.append(paired(own, plain)[0] >= -CLOSE)
        texts.append(f"{rate:g}: {np.mean(own):.1%} against {np.mean(plain):.1%}")
    verdict = HOLDS if all(passed) else MIXED if any(passed) else FAILS
    return part_of("accuracy without the token", rule, verdict, "; ".join(texts))


TRIALS = Trials(
    slug="cvib",
    claim=(
        "Trained beside its own copy narrowed by a bottleneck, with a contrast between both views, a classifier leans "
        "less on a token that goes with the label by chance than plain training or the bottleneck alone, and is as "
        "accurate without the token."
    ),
    experiment=(
        f"{TRAINED} training sentences of SST-2 by seed; an unused token is put into {OFTEN:.0%} of the positive and "
        f"{1 - OFTEN:.0%} of the negative ones, on the dev set (872) into none, and the other way round. MiniLM's word "
        f"embeddings, frozen, and two small blocks of width {WIDTH}; {EPOCHS} epochs for all. Gates are on what enters "
        "the blocks and on their inner units. The bottleneck alone is tested through its gates, the other two as they "
        "are. The paper tunes a large pretrained encoder for aspects."
    ),
    arms={PLAIN: (0.0,), GATES: RATES, OURS: RATES},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        loses_less(outcomes, PLAIN, "leans less on the token than plain training"),
        loses_less(outcomes, GATES, "leans less on it than the bottleneck alone"),
        as_good(outcomes),
    ],
    columns=(
        Column("clean", "accuracy without the token", "{:.1%}"),
        Column("turned", "the other way round", "{:.1%}"),
        Column("lost", "lost", "{:.3f}"),
        Column("lost, narrowed", "lost through gates", "{:.3f}"),
        Column("closed", "gates closed", "{:.0%}"),
    ),
    level="weight of nats",
    recipe={
        "often": OFTEN, "trained": TRAINED, "longest": LONGEST, "width": WIDTH, "heads": HEADS, "depth": DEPTH,
        "epochs": EPOCHS, "batch": BATCH, "rate": RATE, "gate_rate": GATE_RATE,
    },
    data=lambda: _task().fingerprint,
    needs=("sst2/train.tsv", "sst2/dev.tsv"),
)  # fmt: skip
