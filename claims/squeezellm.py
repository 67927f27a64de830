"""SqueezeLLM (Kim et al. 2023): levels by Fisher-weighted k-means, a sparse matrix of outliers beside them.

20 points of about half a minute on one core: ten minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from claims.coding import LEVELS, Arm, Claim, flat, nearest_arm
from claims.common import Outcome
from claims.equal_bytes import against
from claims.vtrans import Part
from isthmus.bottlenecks.bits.squeezellm import SqueezeLlm
from isthmus.bottlenecks.coder import Coder, Setting

ENTRIES = (12.0, 10.0, 8.0, 6.0, 5.0)
DENSE = SqueezeLlm(outliers=0.0, sensitive=0.0)
FISHER, PLAIN, SPARSE = "fisher", "unweighted", "fisher and sparse"


def table(coder: Coder, entries: float) -> tuple[Coder, Setting]:
    """Return a coder with the setting of tables of so many levels."""
    return coder, Setting(math.log2(entries))


def weighted(outcomes: Sequence[Outcome]) -> Part:
    """Decide (a): k-means weighted by the Fisher information against k-means without weights, and rounding."""
    return against("weighted by Fisher information", outcomes, FISHER, [PLAIN, "rtn"])


def sparse(outcomes: Sequence[Outcome]) -> Part:
    """Decide (b): bytes spent on outliers against the same bytes spent on levels."""
    return against("sparse outliers against more levels", outcomes, SPARSE, [FISHER])


CLAIM = Claim(
    slug="squeezellm",
    claim=(
        "At about 3 bits, levels by k-means weighted with the Fisher information lose less than unweighted k-means and "
        "rounding to nearest at equal bytes, and 0.45% of the weights kept apart lose less than the same bytes spent "
        "on more levels."
    ),
    experiment=(
        "Tables of 12 to 5 levels (8 are 3 bits), shared by rows so that tables take about 5% of the indices. The "
        "Fisher information is a factor of rows times one of columns. Outliers are the largest 0.4% and the most "
        "sensitive 0.05% of the weights. Rounding to nearest has 15 to 5 levels, a scale for each row."
    ),
    arms=(
        Arm(FISHER, ENTRIES, lambda entries: table(DENSE, entries), LEVELS),
        Arm(PLAIN, ENTRIES, lambda entries: table(DENSE, entries), LEVELS, known=flat),
        Arm(SPARSE, ENTRIES, lambda entries: table(SqueezeLlm(), entries), LEVELS),
        nearest_arm((15.0, 11.0, 9.0, 7.0, 5.0)),
    ),
    parts=lambda outcomes: [weighted(outcomes), sparse(outcomes)],
)
