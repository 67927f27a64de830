"""How much text one input vector can hold: vectors are sought from which a frozen language model writes the text.

Kuratov et al. 2025 (arXiv 2502.13063): what a vector holds is limited not by the length of a text but by how uncertain
the model is of it without help; the reduction of its cross-entropy is what is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.information.activations import still
from isthmus.progress import Progress, silent


@dataclass(frozen=True)
class Recipe:
    """How vectors are sought.

    Parameters
    ----------
    steps : int
        Of Adam, at the most; the search ends as soon as the text comes out whole.
    rate : float
        Learning rate, in units of the embeddings' root mean square; it falls to a tenth by a cosine.
    """

    steps: int = 2000
    rate: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.rate > 0:
            raise BadInput(f"{self}: give 1 step or more and a rate above 0")


@dataclass(frozen=True)
class Crammed:
    """What was found for one text.

    Parameters
    ----------
    vectors : Tensor, shape ``(vectors, width)``
        The best found.
    tokens, correct : int
        Of the text, and how many of them are likeliest given the vectors and the true ones before.
    correct_alone : int
        The same without vectors: what the model knows by itself.
    nats, nats_alone : float
        Cross-entropy of the whole text with and without vectors.
    steps : int
        That were taken.
    """

    vectors: Tensor
    tokens: int
    correct: int
    correct_alone: int
    nats: float
    nats_alone: float
    steps: int

    @property
    def exact(self) -> bool:
        """Whether greedy decoding from the vectors writes the text: then every token is likeliest after the others."""
        return self.correct == self.tokens

    @property
    def bits(self) -> float:
        """What the vectors tell the model of the text: the reduction of its cross-entropy, in bits."""
        return (self.nats_alone - self.nats) / math.log(2)


@dataclass(frozen=True)
class Capacity:
    """The longest beginning of a text that comes out whole, and every length that was tried, shortest first.

    ``longest`` is None where not even one token did.
    """

    longest: Crammed | None
    tried: tuple[Crammed, ...]


def cram(
    model: nn.Module,
    tokens: Tensor,
    *,
    vectors: int = 1,
    start: int | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> Crammed:
    """Seek input vectors from which a causal language model writes a text.

    The vectors stand before the text's own embeddings; the model's weights are not touched.

    Parameters
    ----------
    model : nn.Module
        A causal language model of transformers.
    tokens : Tensor of int, shape ``(tokens,)``
    vectors : int
        How many.
    start : int, optional
        The token after which the model writes without vectors, such as the beginning of text. Without one the text's
        first token is taken to cost the logarithm of the vocabulary.
    recipe : Recipe, optional
    seed : int
        Of where the search starts.

    Raises
    ------
    BadInput
        If tokens are no row of the vocabulary's numbers, are more than the model's positions, or there is no vector.
    """
    chosen = recipe or Recipe()
    read = _embeddings(model)
    table = read.weight.detach()
    text = _checked(model, tokens, vectors, len(table)).to(table.device)
    scale = float(table.float().square().mean().sqrt())
    generator = torch.Generator().manual_seed(seed)
    found = (scale * torch.randn(vectors, table.shape[1], generator=generator)).to(table.device).requires_grad_()
    optimizer = torch.optim.Adam([found], lr=chosen.rate * scale, betas=(0.9, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.steps, 0.1 * chosen.rate * scale)
    with still(model):
        alone, correct_alone = _alone(model, read, text, start, len(table))
        embedded = read(text[:-1])
        best = (-1, math.inf, found.detach().clone())
        taken = 0
        while True:
            with torch.enable_grad():
                logits = _logits(model, torch.cat([found.to(table.dtype), embedded]))[vectors - 1 :]
                loss = nn.functional.cross_entropy(logits, text, reduction="sum")
            correct = int((logits.argmax(-1) == text).sum())
            if math.isfinite(float(loss)) and (correct, -float(loss)) > (best[0], -best[1]):
                best = correct, float(loss), found.detach().clone()
            if correct == len(text) or taken == chosen.steps or not math.isfinite(float(loss)):
                break
            # Only of the vectors: no gradient reaches the weights' own fields.
            (found.grad,) = torch.autograd.grad(loss, [found])
            optimizer.step()
            schedule.step()
            taken += 1
    return Crammed(best[2].cpu(), len(text), max(best[0], 0), correct_alone, best[1], alone, taken)


def capacity(
    model: nn.Module,
    tokens: Tensor,
    *,
    vectors: int = 1,
    start: int | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Capacity:
    """Return the longest beginning of a text that vectors hold: lengths are doubled until one fails, then halved.

    What fails was not found with this recipe; more steps may find it. A beginning of one that was found is taken to
    be findable.

    Parameters
    ----------
    model, tokens, vectors, start, recipe, seed
        See `cram`.
    progress : callable

    Raises
    ------
    BadInput
        As `cram` does.
    """
    tried: dict[int, Crammed] = {}

    def holds(length: int) -> bool:
        tried[length] = cram(model, tokens[:length], vectors=vectors, start=start, recipe=recipe, seed=seed)
        progress("cramming", len(tried), 2 * max(1, math.ceil(math.log2(len(tokens)))))
        return tried[length].exact

    if tokens.ndim != 1 or not len(tokens):
        raise BadInput(f"tokens of shape {tuple(tokens.shape)}; give one row of token ids")
    longest = _longest(holds, len(tokens))
    return Capacity(tried.get(longest), tuple(tried[length] for length in sorted(tried)))


def _longest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to ``most`` that holds, 0 for none."""
    good, bad = 0, most + 1
    length = 1
    while length < bad:
        if not holds(length):
            bad = length
            break
        good = length
        if good == most:
            return good
        length = min(2 * length, most)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def _alone(model: nn.Module, read: nn.Module, text: Tensor, start: int | None, vocabulary: int) -> tuple[float, int]:
    if start is not None:
        if not 0 <= start < vocabulary:
            raise BadInput(f"start {start}: give a token from 0 to {vocabulary - 1}")
        given = torch.cat([torch.tensor([start], device=text.device), text[:-1]])
        logits = _logits(model, read(given))
        return float(nn.functional.cross_entropy(logits, text, reduction="sum")), _right(logits, text)
    if len(text) == 1:
        return math.log(vocabulary), 0
    logits = _logits(model, read(text[:-1]))
    rest = text[1:]
    return math.log(vocabulary) + float(nn.functional.cross_entropy(logits, rest, reduction="sum")), _right(
        logits, rest
    )


def _right(logits: Tensor, text: Tensor) -> int:
    return int((logits.argmax(-1) == text).sum())


def _logits(model: nn.Module, embedded: Tensor) -> Tensor:
    """Return logits in float32, shape ``(positions, vocabulary)``."""
    found: Tensor = model(inputs_embeds=embedded[None], use_cache=False).logits[0]
    return found.float()


def _embeddings(model: nn.Module) -> nn.Embedding:
    give = getattr(model, "get_input_embeddings", None)
    found = give() if callable(give) else None
    if not isinstance(found, nn.Embedding):
        raise BadInput("cramming: the model has no input embeddings; give a causal language model of transformers")
    return found


def _checked(model: nn.Module, tokens: Tensor, vectors: int, vocabulary: int) -> Tensor:
    if tokens.ndim != 1 or not len(tokens) or tokens.is_floating_point():
        raise BadInput(f"tokens of shape {tuple(tokens.shape)}; give one row of token ids")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        raise BadInput(
            f"tokens from {int(tokens.min())} to {int(tokens.max())}; the vocabulary ends at {vocabulary - 1}"
        )
    if vectors < 1:
        raise BadInput(f"{vectors} vectors; give 1 or more")
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and len(tokens) + vectors - 1 > positions:
        raise BadInput(
            f"{len(tokens)} tokens after {vectors} vectors; the model has {positions} positions, give a shorter text"
        )
    return tokens
