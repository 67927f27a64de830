"""I&S-ViT (Zhong et al. 2023): shifted logarithmic levels for attention, and training in three stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from claims import rounded_vits
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.rounded_vits import COLUMNS, EXPERIMENT, NEEDS, ahead, measured
from claims.trials import Trials
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.bits.after_training.is_vit import IsVit
from isthmus.bottlenecks.bits.after_training.levels import log_levels, shift_log_levels, tensor_levels
from isthmus.bottlenecks.bits.after_training.method import Method
from isthmus.bottlenecks.bits.after_training.observing import layers_of, observe
from isthmus.bottlenecks.bits.after_training.plain import PlainRounding
from isthmus.bottlenecks.bits.after_training.repq_vit import RepqVit
from isthmus.bottlenecks.bits.rounded_attention import Levels

IMAGES, LEVELS = 256, (4.0, 3.0)
OURS, DIRECT, FOLDED, PLAIN = "is-vit", "trained directly", "repq-vit", "plain"
ARMS: dict[str, Method] = {OURS: IsVit(), DIRECT: IsVit(staged=False), FOLDED: RepqVit(), PLAIN: PlainRounding()}
SHIFTED, POWERS, EVEN = "shifted", "powers of two", "even"


def measure(point: Point) -> Mapping[str, Any]:
    """Round and measure; of the method itself also the error of attention weights by each kind of levels."""
    found = measured(ARMS[point.arm], point, IMAGES)
    return {**found, "errors": errors(point)} if point.arm == OURS else found


def errors(point: Point) -> dict[str, float]:
    """Return the mean squared error of rounded attention weights, over all layers, by kind of levels."""
    network, bits = rounded_vits.network(), int(point.level)
    images = rounded_vits.task().train[:32]
    kinds: dict[str, Callable[[Tensor], Levels]] = {
        SHIFTED: lambda weights: shift_log_levels(weights, bits),
        POWERS: lambda weights: log_levels(weights, bits, 1),
        EVEN: lambda weights: tensor_levels(weights, bits),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for own in observe(network, images, layers_of(network)).attention.values():
        weights = torch.cat([one.reshape(-1) for one in own.weights])
        for kind, make in kinds.items():
            found[kind].append(float((make(weights)(weights) - weights).square().mean()))
    return {kind: sum(values) / len(values) for kind, values in found.items()}


def attention(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether shifted levels have the least error on attention weights."""
    rule = "at 3 and at 4 bits shifted levels have a smaller squared error on attention weights than either other kind"
    own = {float(one["level"]): one["errors"] for one in outcomes if one["arm"] == OURS and one["seed"] == 0}
    if set(own) != set(LEVELS):
        return part_of("levels of attention weights", rule, UNTESTED)
    passed = [found[SHIFTED] < found[kind] for found in own.values() for kind in (POWERS, EVEN)]
    text = "; ".join(
        f"{level:g} bits: " + ", ".join(f"{kind} {value:.3g}" for kind, value in found.items())
        for level, found in sorted(own.items())
    )
    return part_of("levels of attention weights", rule, share_passed(passed), text)


TRIALS = Trials(
    slug="is-vit",
    claim=(
        "At 3 and 4 bits, training in three stages, by channel, folded, then on the weights' grid, loses less than "
        "training at once with the levels of whole layers; shifted logarithmic levels round attention weights best."
    ),
    experiment=EXPERIMENT.format(images=IMAGES)
    + "Each layer is trained for 100 steps of 32 images in each of the two stages that train; directly: for 200.",
    arms=dict.fromkeys(ARMS, LEVELS),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        ahead(outcomes, OURS, DIRECT, 3.0, "three stages, 3 bits"),
        ahead(outcomes, OURS, DIRECT, 4.0, "three stages, 4 bits"),
        ahead(outcomes, OURS, PLAIN, 4.0, "against plain rounding"),
        attention(outcomes),
    ],
    columns=COLUMNS,
    level="bits",
    recipe=rounded_vits.recipe(IMAGES),
    data=rounded_vits.data,
    needs=NEEDS,
)
