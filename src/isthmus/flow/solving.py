"""Solving: after a cut, what writes to the residual stream is solved anew in closed form, before any training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from isthmus.errors import IsthmusError
from isthmus.flow.study import Study
from isthmus.flow.together import from_main
from isthmus.network import Network, tokenize
from isthmus.progress import Progress, silent
from isthmus.recovery.reconstruct import reconstruct
from isthmus.relevance.probe import measure_network
from isthmus.sites import discover

TEXTS = 1024
"""Of all-MiniLM-L6-v2 at half, cut by ``fisher`` (0.60 nats on the probe), 512 texts leave 0.35, 2,048 leave 0.32."""

TOKENS = 1 << 15
"""At most so many: both networks' streams of all of them are held at once."""


def solve(
    study: Study, student: Network, kept: Mapping[str, Sequence[int]], progress: Progress = silent
) -> Network | None:
    """Return a cut network with its projections solved anew, or None where this brings it no closer to the original.

    Far below half it does not, and where no text reads the same in both networks it cannot be done. Of several
    processes the main one solves, and tells the others.

    Parameters
    ----------
    kept : mapping of str to sequence of int
        The units that stayed.
    """
    solved = replace(student, model=copy.deepcopy(student.model))

    def step() -> dict[str, torch.Tensor] | None:
        try:
            reconstruct(solved, study.network, discover(study.network), kept, _texts(study), progress=progress)
        except IsthmusError:
            progress("reconstruct", 1, 1, "left out")
            return None
        closer = measure_network(study.probe, solved) < measure_network(study.probe, student)
        return dict(solved.model.state_dict()) if closer else None

    weights = from_main(step)
    if weights is None:
        return None
    solved.model.load_state_dict(weights)
    return solved


def _texts(study: Study) -> Sequence[str]:
    """Return the first texts, as many as are wanted and can be held."""
    texts = study.texts[:TEXTS]
    # Counted text by text: padding is cut off again in batches of like length.
    counts = [int(tokenize(study.network, [text])["attention_mask"].sum()) for text in texts]
    return texts[: max(1, int(np.searchsorted(np.cumsum(counts), TOKENS, side="right")))]
