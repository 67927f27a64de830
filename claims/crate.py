"""White-box transformers (Yu et al. 2023): blocks that lower the coding rate of tokens, beside ordinary ones.

Six short trainings on Fashion-MNIST: a minute on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.errors import BadInput
from isthmus.information.training.crate import CrateBlock, block_rates
from isthmus.tasks.data import data_folder
from isthmus.tasks.image_arrays import read_idx

FILES = ("fashion-mnist/train-images-idx3-ubyte.gz", "fashion-mnist/train-labels-idx1-ubyte.gz")
OURS, PLAIN, UNTRAINED = "crate", "transformer", "crate, untrained"
SIDE, PATCH, WIDTH, HEADS, DEPTH = 28, 7, 64, 4, 4
TRAINED, HELD, MEASURED, EPOCHS, BATCH, RATE = 5000, 2000, 60, 6, 100, 1e-3
WITHIN = 0.03
STEADY = 0.8


@cache
def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images of Fashion-MNIST as patches ``(images, 16, 49)``, and labels: to train on, and held out."""
    folder = data_folder()
    if folder is None:
        raise BadInput("crate: skipped, no folder of data")
    images, labels = (read_idx(folder / file) for file in FILES)
    order = np.random.default_rng(seed).permutation(len(images))[: TRAINED + HELD]
    pixels = torch.from_numpy(images[order] / 255.0).float() - 0.3
    truth = torch.from_numpy(labels[order].astype(np.int64))
    side = SIDE // PATCH
    patches = pixels.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, side * side, PATCH * PATCH)
    return patches[:TRAINED], truth[:TRAINED], patches[TRAINED:], truth[TRAINED:]


class Classifier(nn.Module):
    """Patches made tokens, blocks, the mean over tokens, a linear map."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList(_block(arm) for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def tokens(self, patches: Tensor) -> Tensor:
        """Return what enters the first block, shape ``(images, patches, width)``."""
        found: Tensor = self.embed(patches) + self.places
        return found

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits, shape ``(images, 10)``."""
        states = self.tokens(patches)
        for block in self.blocks:
            states = block(states)
        found: Tensor = self.head(self.norm(states).mean(1))
        return found


def _block(arm: str) -> nn.Module:
    if arm == PLAIN:
        return nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
    return CrateBlock(WIDTH, HEADS, WIDTH // HEADS)


def train(arm: str, seed: int) -> Classifier:
    """Return a classifier, the same steps for both kinds of block; as it begins where it is not to be trained."""
    torch.manual_seed(seed)
    model = Classifier(arm)
    inputs, labels, _, _ = data(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    epochs = 0 if arm == UNTRAINED else EPOCHS
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs))
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs[rows]), labels[rows]))
            optimizer.step()
        schedule.step()
    return model.eval()


@cache
def _trained(arm: str, seed: int) -> tuple[float, tuple[Any, ...], int]:
    """Return accuracy, what each block does (nothing of ordinary ones), and parameters."""
    model, (_, _, inputs, labels) = train(arm, seed), data(seed)
    with torch.no_grad():
        accuracy = float((model(inputs).argmax(1) == labels).double().mean())
        tokens = model.tokens(inputs[:MEASURED])
    blocks = [block for block in model.blocks if isinstance(block, CrateBlock)]
    rates = block_rates(blocks, tokens) if blocks else ()
    return accuracy, rates, sum(parameter.numel() for parameter in model.parameters())


def measure(point: Point) -> Mapping[str, Any]:
    """Train a classifier once a seed; return its accuracy, and what one of its blocks does."""
    accuracy, rates, parameters = _trained(point.arm, point.seed)
    if point.arm == PLAIN:
        return {"accuracy": accuracy, "parameters": parameters}
    found = rates[int(point.level) - 1]
    return {
        "accuracy": accuracy, "parameters": parameters,
        "before": found.before, "after": found.after, "sparsity": found.sparsity,
    }  # fmt: skip


BLOCKS = tuple(float(place) for place in range(1, DEPTH + 1))


def close(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): accuracy beside ordinary blocks."""
    rule = (
        f"accuracy is at most {100 * WITHIN:g} points below that of ordinary blocks in the mean over seeds; does not "
        "hold: further below by more than twice the standard error of paired differences; mixed: otherwise"
    )
    ours, theirs = (of_arm(outcomes, arm, BLOCKS[0], "accuracy") for arm in (OURS, PLAIN))
    if len(ours) < 2 or len(ours) != len(theirs):
        return part_of("accuracy", rule, UNTESTED)
    gap, error = paired(ours, theirs)
    verdict = HOLDS if gap >= -WITHIN else FAILS if gap + 2 * error < -WITHIN else MIXED
    sizes = [of_arm(outcomes, arm, BLOCKS[0], "parameters")[0] for arm in (OURS, PLAIN)]
    text = (
        f"{np.mean(ours):.1%} of {sizes[0] / 1e3:.0f} thousand parameters against {np.mean(theirs):.1%} of "
        f"{sizes[1] / 1e3:.0f} thousand"
    )
    return part_of("accuracy", rule, verdict, text, gap=gap, error=error)


def lowers(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): what attention does to the coding rate."""
    rule = (
        "in every trained block, the coding rate of tokens in the block's subspaces is lower after attention than "
        "before, by more than twice the standard error over seeds; mixed: in some; does not hold: in none"
    )
    passed, texts = [], []
    for block in BLOCKS:
        before, after = (of_arm(outcomes, OURS, block, key) for key in ("before", "after"))
        if len(before) < 2 or len(before) != len(after):
            return part_of("attention lowers the rate", rule, UNTESTED)
        gap, error = paired(after, before)
        passed.append(gap < -2 * error)
        start = [np.mean(of_arm(outcomes, UNTRAINED, block, key) or [np.nan]) for key in ("before", "after")]
        texts.append(
            f"block {block:g}: {np.mean(before):.1f} to {np.mean(after):.1f} nats (untrained {start[0]:.1f} to "
            f"{start[1]:.1f})"
        )
    return part_of("attention lowers the rate", rule, share_passed(passed), "; ".join(texts))


def deeper(outcomes: Sequence[Outcome]) -> Part:
    """Decide (c): rate and sparsity from block to block."""
    rule = (
        f"over the blocks, the rank correlation with depth of the rate after attention is at most -{STEADY:g}, and of "
        f"the share of zeros at least {STEADY:g}, in the mean over seeds; mixed: of one of them; does not hold: of none"
    )
    found: dict[str, list[float]] = {"after": [], "sparsity": []}
    for seed in sorted({one["seed"] for one in outcomes}):
        own = [one for one in outcomes if one["arm"] == OURS and one["seed"] == seed]
        if len(own) == DEPTH:
            for key, values in found.items():
                values.append(float(spearmanr([one["level"] for one in own], [one[key] for one in own]).statistic))
    if not found["after"]:
        return part_of("rate falls, sparsity rises with depth", rule, UNTESTED)
    means = {key: float(np.mean(values)) for key, values in found.items()}
    passed = [means["after"] <= -STEADY, means["sparsity"] >= STEADY]
    text = f"rate {means['after']:+.2f}, share of zeros {means['sparsity']:+.2f}"
    return part_of("rate falls, sparsity rises with depth", rule, share_passed(passed), text)


TRIALS = Trials(
    slug="crate",
    claim=(
        "A transformer whose blocks are steps that lower the coding rate of tokens and make them sparse is about as "
        "accurate as an ordinary one of its depth and width, and what the blocks do can be measured."
    ),
    experiment=(
        f"Fashion-MNIST's training images by seed, {TRAINED} to train on and {HELD} held out, in "
        f"{(SIDE // PATCH) ** 2} patches; {DEPTH} blocks of width {WIDTH} and {HEADS} heads, the mean over tokens, a "
        f"linear map; {EPOCHS} epochs of AdamW for both. Subspace attention has an output map of its own, as the paper "
        f"trains it. Rates and zeros are those of {MEASURED} held-out images."
    ),
    arms={OURS: BLOCKS, PLAIN: BLOCKS[:1], UNTRAINED: BLOCKS},
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [close(outcomes), lowers(outcomes), deeper(outcomes)],
    columns=(
        Column("accuracy", "accuracy", "{:.1%}"),
        Column("before", "rate before attention", "{:.1f}"),
        Column("after", "after", "{:.1f}"),
        Column("sparsity", "zeros", "{:.1%}"),
    ),
    level="block",
    recipe={
        "width": WIDTH, "heads": HEADS, "depth": DEPTH, "patch": PATCH, "trained": TRAINED, "held": HELD,
        "measured": MEASURED, "epochs": EPOCHS, "batch": BATCH, "rate": RATE,
    },
    data=lambda: digest_of([data(0)[1].numpy(), data(0)[3].numpy()]),
    needs=FILES,
)  # fmt: skip
