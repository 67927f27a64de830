"""Characterising bias in compressed models (Hooker et al. 2020): who bears what narrowing costs.

18 populations of five networks, and the originals of each seed: six minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from claims.coding import Point
from claims.common import Outcome
from claims.data import digest_of
from claims.equal_bytes import part_of, share_passed
from claims.forgetting_parts import LEAST, Read, hard, read, rises
from claims.populations import (
    AGAIN,
    ARMS,
    CLASSES,
    EPOCHS_AFTER,
    FILES,
    HELD,
    NARROWED,
    NETWORKS,
    SHARES,
    SMALL,
    TRAINED,
    Data,
    Examples,
    Integers,
    as_tensor,
    images,
    recipe,
)
from claims.trials import Column, Trials, of_arm, paired
from claims.vtrans import FAILS, HOLDS, MIXED, UNTESTED, Part
from isthmus.audit.damage import Damage, measure_damage
from isthmus.audit.slices import Slice

GROUP, MINORITY = "upside down", 0.05


def plant(pixels: npt.NDArray[np.uint8], labels: Integers, seed: int) -> Data:
    """Turn a few images upside down, as many in training as among those held out."""
    rng = np.random.default_rng([seed, 2])
    turned = pixels[: HELD + TRAINED].copy()
    group = rng.random(len(turned)) < MINORITY
    turned[group] = turned[group][:, ::-1, ::-1]
    parts = (slice(HELD), slice(HELD, HELD + TRAINED))
    held, train = (Examples(as_tensor(turned[rows]), labels[rows], group[rows]) for rows in parts)
    return Data(train, held)


def damage_of(found: Read, seed: int) -> Damage:
    """Return the damage by class and of the group, as the audit measures it."""
    held = found.first.data.held
    slices = [Slice(f"class {number}", held.labels == number) for number in range(CLASSES)]
    errors = [(one.argmax(axis=2) != held.labels).astype(np.float64) for one in (found.ours, found.theirs)]
    return measure_damage(errors[0], errors[1], [*slices, Slice(GROUP, held.planted)], seed=seed)


def measure(point: Point) -> Mapping[str, Any]:
    """Find exemplars, and measure what narrowing costs the minority beside what it costs all."""
    found = read(plant, point)
    damage = damage_of(found, point.seed)
    row = next(row for row in damage.rows if row.name == GROUP)
    return {
        **found.figures,
        "group_before": row.original,
        "group_after": row.narrowed,
        "group_damage": row.damage.value,
        "damage": damage.overall.value,
        "beyond": row.damage.value - damage.overall.value,
        "p": row.p_value,
        "found": float(row.found),
    }


def minority(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether the error of the minority grows by more than that of all."""
    rule = (
        "at every share of the parameters below 1, the error of the minority grows by more than the error of all "
        "images, by more than twice the standard error of paired differences; mixed: at some; does not hold: nowhere"
    )
    passed, texts = [], []
    for share in SHARES[1:]:
        group, every = (of_arm(outcomes, NARROWED, share, key) for key in ("group_damage", "damage"))
        if len(group) < 2 or len(group) != len(every):
            return part_of("the minority pays more", rule, UNTESTED)
        mean, error = paired(group, every)
        passed.append(mean > 2 * error)
        texts.append(
            f"{share:.0%}: {100 * np.mean(group):+.1f} against {100 * np.mean(every):+.1f} points ({100 * mean:+.1f} ± "
            f"{100 * error:.1f})"
        )
    return part_of("the minority pays more", rule, share_passed(passed), "; ".join(texts))


def named(outcomes: Sequence[Outcome]) -> Part:
    """Decide whether the audit names the minority."""
    rule = (
        f"at {LEAST:.0%} of the parameters the audit finds the minority damaged beyond the rest, at 5 % corrected for "
        f"{CLASSES + 1} slices, in every seed; mixed: in some; does not hold: in none"
    )
    found = of_arm(outcomes, NARROWED, LEAST, "found")
    if len(found) < 2:
        return part_of("the audit names it", rule, UNTESTED)
    verdict = HOLDS if all(found) else MIXED if any(found) else FAILS
    values = ", ".join(f"{p:.3g}" for p in of_arm(outcomes, NARROWED, LEAST, "p"))
    return part_of("the audit names it", rule, verdict, f"in {int(sum(found))} of {len(found)} seeds; p {values}")


def _data() -> str:
    pixels, labels = images(0)
    return digest_of([pixels[: HELD + TRAINED], labels[: HELD + TRAINED]])


TRIALS = Trials(
    slug="cie-audit",
    claim=(
        "The images on which populations of networks before and after narrowing disagree are harder than average for "
        "networks that were not narrowed, and the error of a minority grows by more than that of all, the more so the "
        "smaller the network."
    ),
    experiment=(
        f"Fashion-MNIST's training images by seed: {TRAINED} to train on, {HELD} held out, {MINORITY:.0%} of both "
        f"{GROUP}: the minority. Populations of {NETWORKS} networks of two hidden layers; units of least magnitude are "
        f"taken out of both, and what is left is trained for {EPOCHS_AFTER} epochs. Accuracy on exemplars is that of a "
        f"sixth original. Damage by slice as `isthmus audit` measures it. `{AGAIN}` says how much of that is chance, "
        f"`{SMALL}` what networks of the same small shape do, trained for as many epochs in all."
    ),
    arms=ARMS,
    seeds=(0, 1, 2),
    measure=measure,
    parts=lambda outcomes: [
        hard(outcomes, SHARES[1:]),
        minority(outcomes),
        rises(outcomes, "beyond", "the more so the smaller", "what the minority pays beyond all"),
        named(outcomes),
    ],
    columns=(
        Column("params", "parameters", "{:.1%}"),
        Column("accuracy", "accuracy", "{:.3f}"),
        Column("exemplars", "exemplars", "{:.2%}"),
        Column("on_exemplars", "another original's accuracy on them", "{:.3f}"),
        Column("on_all", "on all", "{:.3f}"),
        Column("damage", "damage, all", "{:.3f}"),
        Column("group_damage", "damage, minority", "{:.3f}"),
        Column("p", "p, minority", "{:.3f}"),
    ),
    level="share of the parameters",
    recipe={**recipe(), "minority": MINORITY, "group": GROUP},
    data=_data,
    needs=FILES,
)
