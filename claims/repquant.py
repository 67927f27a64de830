"""RepQuant (Li et al. 2024): dual clipping and weights set anew each lose less than folding alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims import rounded_vits
from claims.coding import Point
from claims.rounded_vits import COLUMNS, EXPERIMENT, IMAGES, NEEDS, ahead, measured
from claims.trials import Trials
from isthmus.bottlenecks.bits.after_training.method import Method
from isthmus.bottlenecks.bits.after_training.plain import PlainRounding
from isthmus.bottlenecks.bits.after_training.repq_vit import RepqVit
from isthmus.bottlenecks.bits.after_training.repquant import RepQuant

LEVELS = (4.0,)
OURS, FOLDED, DUAL, SET, PLAIN = "repquant", "repq-vit", "dual clipping alone", "weights set anew alone", "plain"
ARMS: dict[str, Method] = {
    OURS: RepQuant(),
    FOLDED: RepqVit(),
    DUAL: RepQuant(reconstruct=False),
    SET: RepQuant(dual=False),
    PLAIN: PlainRounding(),
}


def measure(point: Point) -> Mapping[str, Any]:
    """Round and measure."""
    return measured(ARMS[point.arm], point)


TRIALS = Trials(
    slug="repquant",
    claim=(
        "Dual clipping of channels and weights set anew for rounded inputs each add to what folding gains; together "
        "they lose less than folding alone and than plain rounding."
    ),
    experiment=EXPERIMENT.format(images=IMAGES),
    arms=dict.fromkeys(ARMS, LEVELS),
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        ahead(outcomes, OURS, FOLDED, 4.0, "against folding alone"),
        ahead(outcomes, OURS, PLAIN, 4.0, "against plain rounding"),
        ahead(outcomes, DUAL, FOLDED, 4.0, "dual clipping"),
        ahead(outcomes, OURS, DUAL, 4.0, "weights set anew"),
    ],
    columns=COLUMNS,
    level="bits",
    recipe=rounded_vits.recipe(),
    data=rounded_vits.data,
    needs=NEEDS,
)
