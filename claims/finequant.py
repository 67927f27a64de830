"""FineQuant (Kim et al. 2023): groups as fine as the weights of each matrix ask for, without calibration data.

20 points of about a minute on one core: twenty minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from claims.coding import GROUPS, Arm, Claim, Point, Workbench, grid
from claims.common import Outcome
from claims.equal_bytes import against, part_of, share_passed
from claims.vtrans import Part
from isthmus.bottlenecks.bits.finequant import FineQuant
from isthmus.bottlenecks.coder import Coder, Setting
from isthmus.storage.coded import Coded, Uniform, block_size, decode, scale_of

RATIOS = (0.88, 0.9, 0.92, 0.93, 0.94)
"""Chosen from the weights alone: beyond these all matrices of an encoder get the widest or the finest groups."""
SIZES = (1536.0, 192.0, 96.0, 48.0, 32.0)
WIDTHS = {4: 15, 3: 7}
EQUAL = 1e-5


def _adaptive(bits: int, ratio: float) -> tuple[Coder, Setting]:
    return FineQuant(ratio), grid(WIDTHS[bits], 0)


def _fixed(bits: int, group: float) -> tuple[Coder, Setting]:
    return FineQuant(), grid(WIDTHS[bits], int(group))


def arms() -> tuple[Arm, ...]:
    """Return adaptive and fixed groups at 4 and at 3 bits."""
    found = []
    for bits in WIDTHS:
        found += [
            Arm(f"adaptive, {bits} bits", RATIOS, partial(_adaptive, bits), "ratio {:g}"),
            Arm(f"fixed, {bits} bits", SIZES, partial(_fixed, bits), GROUPS),
        ]
    return tuple(found)


def observe(bench: Workbench, arm: Arm, point: Point, codes: Mapping[str, Coded]) -> dict[str, Any]:
    """Return the columns of a group by matrix, and how far products over integers are from those over weights."""
    groups, furthest = {}, 0.0
    for name, code in codes.items():
        if isinstance(code, Uniform):
            columns = code.shape[1]
            groups[name] = block_size(columns, code.scales[0].shape[1])
            inputs = np.random.default_rng(0).normal(size=(4, columns)).astype(np.float32)
            expected = inputs @ decode(code).T
            error = np.abs(product(inputs, code) - expected).max() / max(float(np.abs(expected).max()), 1e-30)
            furthest = max(furthest, float(error))
    return {"groups": groups, "furthest": furthest}


def product(inputs: np.ndarray[Any, Any], code: Uniform) -> np.ndarray[Any, Any]:
    """Return ``inputs @ weight.T`` from integers, each group's partial sum scaled after it was taken.

    Parameters
    ----------
    inputs : ndarray of float32, shape ``(vectors, columns)``
    code : Uniform
        With one grid of scales, of a row for each row or for all.
    """
    (exponents,) = code.scales
    size = block_size(code.shape[1], exponents.shape[1])
    total = np.zeros((len(inputs), code.shape[0]), dtype=np.float32)
    for block in range(-(-code.shape[1] // size)):
        own = slice(block * size, (block + 1) * size)
        total += (inputs[:, own] @ code.integers[:, own].T.astype(np.float32)) * scale_of(exponents[:, block])
    return total


def adaptive(outcomes: Sequence[Outcome], bits: int) -> Part:
    """Decide (a): adaptive groups against fixed ones at equal bytes."""
    return against(f"adaptive groups at {bits} bits", outcomes, f"adaptive, {bits} bits", [f"fixed, {bits} bits"])


def on_the_fly(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): products over integers equal those over decoded weights."""
    rule = (
        f"for every matrix at every point a product over integers, scaled group by group, is within {EQUAL:g} of that "
        "over decoded weights (of its largest entry; random inputs)"
    )
    furthest = [float(one["furthest"]) for one in outcomes]
    text = f"at most {max(furthest):.1e} apart" if furthest else ""
    return part_of("scaling on the fly", rule, share_passed([one <= EQUAL for one in furthest]), text)


CLAIM = Claim(
    slug="finequant",
    claim=(
        "Groups of weights whose size is chosen for each matrix by how fast ranges shrink, from the weights alone, "
        "lose less at equal bytes than one fixed size of group; scaling on the fly gives what decoded weights give."
    ),
    experiment=(
        "Symmetric grids at 4 and 3 bits. Adaptive: groups are halved while the mean range shrinks below a ratio, "
        "down to 48 columns, for five ratios (a row of a matrix of 384 columns holds at most 8 groups then). Fixed: "
        "one group size for all matrices, from 1536 columns (whole rows) to 32. Bytes count the scales, all entropy "
        "coded. The kernels' speed is not tested."
    ),
    arms=arms(),
    parts=lambda outcomes: [adaptive(outcomes, 4), adaptive(outcomes, 3), on_the_fly(outcomes)],
    observe=observe,
)
