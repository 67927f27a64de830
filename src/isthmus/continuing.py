"""Continuing texts: what a language model makes of every next token, in windows where a text is long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from isthmus.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from isthmus.network import Network

WINDOW_TOKENS = 2048
"""Padded tokens that are run at once: each has a logit for every word of the vocabulary."""


def next_logits(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the logits of the tokens that a text has, from what stands before each.

    Parameters
    ----------
    logits : Tensor, shape ``(batch, tokens, vocabulary)``
    attention_mask : Tensor, shape ``(batch, tokens)``
        1 where there is a token, padding behind them.

    Returns
    -------
    Tensor, shape ``(tokens but the first of each text, vocabulary)``
    """
    return logits[:, :-1][attention_mask[:, 1:].bool()]


def windows(tokens: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield windows of two tokens or more as ``(start, stop, first)``: tokens from ``first`` on count in this window.

    Each begins half a window after the one before, so that all but the first tokens have at least half a window before
    them; every token but the text's first counts once.
    """
    stride = length // 2
    start, done = 0, 1
    while True:
        stop = min(start + length, tokens)
        yield start, stop, done
        if stop == tokens:
            return
        start, done = start + stride, stop


def text_nats(
    network: Network, texts: Sequence[str], run: Callable[[dict[str, Tensor]], Tensor] | None = None
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the negative log-likelihood of texts, token by token from what stands before.

    Parameters
    ----------
    network : Network
        A language model.
    texts : sequence of str
        Of two tokens or more; one that is longer than the network reads is run in windows.
    run : callable, optional
        From ``input_ids`` and ``attention_mask`` ``(batch, tokens)`` to logits ``(batch, tokens, vocabulary)``; by
        default the network's own model.

    Returns
    -------
    ndarray, shape ``(texts, 2)``, float32
        The sum in nats, and the number of tokens that it is a sum over.

    Raises
    ------
    BadInput
        If the network has no tokenizer, or a text has fewer than two tokens.
    """
    import numpy as np
    import torch

    if network.tokenizer is None:
        raise BadInput(f"network {network.name}: has no tokenizer; give one to isthmus.open(model, tokenizer=...)")
    run = run or _model_of(network)
    ids = network.tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
    jobs = []
    for text, row in enumerate(ids):
        if len(row) < 2:
            raise BadInput(f"network {network.name}: text {text} has {len(row)} tokens; give texts of two or more")
        jobs += [(text, row[a:b], first - a) for a, b, first in windows(len(row), network.max_length)]
    jobs.sort(key=lambda job: len(job[1]))
    found = np.zeros((len(ids), 2))
    with torch.inference_mode():
        while jobs:
            longest = len(jobs[-1][1])
            batch = jobs[-max(1, WINDOW_TOKENS // longest) :]
            del jobs[-len(batch) :]
            rows = torch.zeros((len(batch), longest), dtype=torch.long)
            mask = torch.zeros_like(rows)
            for place, (_, tokens, _) in enumerate(batch):
                rows[place, : len(tokens)] = torch.tensor(tokens)
                mask[place, : len(tokens)] = 1
            logits = run({"input_ids": rows, "attention_mask": mask})
            for place, (text, tokens, first) in enumerate(batch):
                scores = logits[place, first - 1 : len(tokens) - 1].float()
                nats = torch.nn.functional.cross_entropy(scores, rows[place, first : len(tokens)], reduction="sum")
                found[text] += float(nats), len(tokens) - first
    return found.astype(np.float32)


def _model_of(network: Network) -> Callable[[dict[str, Tensor]], Tensor]:
    from isthmus.network import without_cache

    model: Any = network.model

    def run(inputs: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model(**inputs, **without_cache(model)).logits
        return logits

    return run
