"""RepQ-ViT (Li et al. 2023): levels for each channel, folded away, make 4 bits after training usable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from claims import rounded_vits
from claims.coding import Point
from claims.common import Outcome
from claims.equal_bytes import part_of, share_passed
from claims.rounded_vits import COLUMNS, EXPERIMENT, IMAGES, NEEDS, ahead, measured
from claims.trials import Trials, of_arm
from claims.vtrans import UNTESTED, Part
from isthmus.bottlenecks.bits.after_training.folding import folded
from isthmus.bottlenecks.bits.after_training.method import Job, Method, copied
from isthmus.bottlenecks.bits.after_training.observing import layers_of, observe
from isthmus.bottlenecks.bits.after_training.plain import PlainRounding
from isthmus.bottlenecks.bits.after_training.repq_vit import RepqVit
from isthmus.network import encode, outputs

BITS, EXACT = 4.0, 1e-4
OURS, PLAIN, POWERS, EVEN = "repq-vit", "plain", "repq-vit, powers of two", "repq-vit, even attention weights"
ARMS: dict[str, Method] = {OURS: RepqVit(), PLAIN: PlainRounding(), POWERS: RepqVit(root=1), EVEN: RepqVit(root=0)}


def measure(point: Point) -> Mapping[str, Any]:
    """Round and measure; of the method itself also how far folding moves the outputs."""
    found = measured(ARMS[point.arm], point)
    return {**found, "moved": moved(point)} if point.arm == OURS else found


def moved(point: Point) -> float:
    """Return the largest change of an output by folding alone, as a share of the largest output."""
    network, images = rounded_vits.network(), rounded_vits.task().train[:IMAGES]
    student = copied(network)
    seen = observe(student, images, layers_of(student))
    folded(student, seen, Job(network, images, int(point.level), int(point.level)))
    with torch.inference_mode():
        whole, found = (outputs(one, encode(one, images)) for one in (network, student))
    return float((whole - found).abs().max() / whole.abs().max())


def exact(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether folding leaves the network as it is."""
    rule = f"folding alone changes no output by more than {EXACT:g} of the largest"
    found = of_arm(outcomes, OURS, BITS, "moved")
    if not found:
        return part_of("folding is exact", rule, UNTESTED)
    return part_of("folding is exact", rule, share_passed([one <= EXACT for one in found]), f"at most {max(found):.2g}")


TRIALS = Trials(
    slug="repq-vit",
    claim=(
        "Levels for each channel behind norms and logarithmic ones for attention weights, folded into plain ones, make "
        "4 bits after training usable; folding changes nothing, and the root of two beats two and even levels."
    ),
    experiment=EXPERIMENT.format(images=IMAGES),
    arms=dict.fromkeys(ARMS, (BITS,)),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        ahead(outcomes, OURS, PLAIN, BITS, "against plain rounding"),
        exact(outcomes),
        ahead(outcomes, OURS, EVEN, BITS, "root of two against even levels"),
        ahead(outcomes, OURS, POWERS, BITS, "root of two against powers of two"),
    ],
    columns=COLUMNS,
    level="bits",
    recipe=rounded_vits.recipe(),
    data=rounded_vits.data,
    needs=NEEDS,
)
