"""Solving: after a cut, what needs no training is set anew: projections in closed form, statistics of batch norms."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from isthmus.cost.examples import one_example
from isthmus.errors import IsthmusError
from isthmus.examples import Example, texts_of
from isthmus.flow.study import Study, cut
from isthmus.flow.together import from_main
from isthmus.network import Network, tokenize
from isthmus.progress import Progress, silent
from isthmus.recovery.norms import batch_norms, estimate_norms, restate_norms
from isthmus.recovery.reconstruct import reconstruct
from isthmus.relevance.probe import measure_network
from isthmus.relevance.readers import close_all, find_readers
from isthmus.sites import LAYERS, discover

EXAMPLES = 1024
"""Of all-MiniLM-L6-v2 at half, cut by ``fisher`` (0.60 nats on the probe), 512 texts leave 0.35, 2,048 leave 0.32."""

TOKENS = 1 << 15
"""At most so many: both networks' streams of all of them are held at once."""


def solve(
    study: Study, student: Network, kept: Mapping[str, Sequence[int]], progress: Progress = silent
) -> Network | None:
    """Return a cut network with projections and batch norms set anew, or None where this brings it no closer.

    What writes to the residual stream is solved by least squares, layer by layer; where there are no layers, what
    reads a narrowed site is (`isthmus.relevance.readers`). Then the running statistics of batch norms are estimated.
    Each is kept only where the probe says that the network came closer to the original. Far below half of the
    parameters the first does not; where no text reads the same in both networks, it cannot be done. Of several
    processes the main one solves, and tells the others.

    Parameters
    ----------
    kept : mapping of str to sequence of int
        The units that stayed.
    """

    def step() -> dict[str, torch.Tensor] | None:
        found, nats = student, measure_network(study.probe, student)
        for renewed_by in (_projections, _norms, _readers):
            renewed = renewed_by(study, found, kept, progress)
            closer = nats if renewed is None else measure_network(study.probe, renewed)
            if renewed is not None and closer < nats:
                found, nats = renewed, closer
        return None if found is student else dict(found.model.state_dict())

    weights = from_main(step)
    if weights is None:
        return None
    solved = _copied(student)
    solved.model.load_state_dict(weights)
    return solved


def _copied(network: Network) -> Network:
    return replace(network, model=copy.deepcopy(network.model))


def _projections(
    study: Study, student: Network, kept: Mapping[str, Sequence[int]], progress: Progress
) -> Network | None:
    solved = _copied(student)
    try:
        reconstruct(solved, study.network, discover(study.network), kept, _examples(study), progress=progress)
    except IsthmusError:
        progress("reconstruct", 1, 1, "left out")
        return None
    return solved


def _norms(study: Study, student: Network, kept: Mapping[str, Sequence[int]], progress: Progress) -> Network | None:
    """Return the student with the batch norms of an original that is restated on these images, and then estimated."""
    if not kept or not batch_norms(student.model):
        return None
    restated = _copied(study.network)
    restate_norms(restated, study.examples[:EXAMPLES], progress=progress)
    renewed = _copied(student)
    others = dict(cut(replace(study, network=restated), kept).model.named_modules())
    for path, module in renewed.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.load_state_dict(others[path].state_dict())
    return renewed if estimate_norms(renewed, study.examples[:EXAMPLES], progress=progress) else None


def _readers(study: Study, student: Network, kept: Mapping[str, Sequence[int]], progress: Progress) -> Network | None:
    """Return the network cut anew, with what reads its sites solved and its batch norms estimated."""
    if not kept or any(site.kind == LAYERS for site in discover(study.network)):
        return None
    whole = _copied(study.network)
    examples = study.examples[:EXAMPLES]
    restate_norms(whole, examples)
    progress("readers", 0, 1)
    changed = close_all(find_readers(whole, study.sites, examples), kept)
    progress("readers", 1, 1)
    if not changed:
        return None
    renewed = cut(replace(study, network=whole), kept)
    estimate_norms(renewed, examples, progress=progress)
    return renewed


def _examples(study: Study) -> Sequence[Example]:
    """Return the first examples, as many as are wanted and can be held."""
    examples = study.examples[:EXAMPLES]
    if study.network.images is not None:
        tokens = image_tokens(study.network)
        return examples[: max(1, TOKENS // tokens)]
    # Counted text by text: padding is cut off again in batches of like length.
    texts = texts_of(examples, "reconstruction")
    counts = [int(tokenize(study.network, [text])["attention_mask"].sum()) for text in texts]
    return examples[: max(1, int(np.searchsorted(np.cumsum(counts), TOKENS, side="right")))]


def image_tokens(network: Network) -> int:
    """Return how many tokens enter the layers for one image; 1 where there is no list of layers."""
    layers = next((site for site in discover(network) if site.name == LAYERS), None)
    if layers is None:
        return 1
    seen: list[int] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = args[0] if args else kwargs["hidden_states"]
        seen.append(state[0].numel() // state.shape[-1 if state.dim() == 3 else 1])

    handle = network.model.get_submodule(f"{layers.module}.0").register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            network.model(**one_example(network, 1))
    finally:
        handle.remove()
    return seen[0]
