"""A network: a model with what belongs to it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.continuing import next_logits, text_nats
from isthmus.errors import BadInput
from isthmus.examples import Example, size_of, texts_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


@dataclass(frozen=True)
class ImageInput:
    """What a network that reads images wants them to be.

    Parameters
    ----------
    channels : int
        1 for grey, 3 for colour.
    height, width : int
        Pixels.
    mean, std : tuple of float
        By channel, of values from 0 to 1: what is subtracted, and what is then divided by.
    shortest_edge : int or None
        The shorter side is resized to this and the middle cut out; None: resized to height and width as they are.
    resample : {"bilinear", "bicubic", "nearest"}

    Raises
    ------
    BadInput
        If a number is out of its range.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest_edge: int | None = None
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise BadInput(f"images of {self.channels} by {self.height} by {self.width}: give numbers above 0")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise BadInput(f"images: mean {self.mean} and std {self.std}; give {self.channels} of each, std above 0")
        if self.resample not in ("bilinear", "bicubic", "nearest"):
            raise BadInput(f"images: resample {self.resample!r} is not bilinear, bicubic or nearest")


@dataclass(frozen=True)
class Network:
    """A model with what belongs to it.

    Parameters
    ----------
    name : str
        What it is called in tables.
    model : nn.Module
        In evaluation mode, float32.
    tokenizer : transformers fast tokenizer or None
    pooling : {"mean", "cls", "logits", "tokens"}
        How token states become one vector; ``logits`` for a sequence classifier, whose output is used as it is;
        ``tokens`` for a language model, of which the logits of every next token are used.
    normalize : bool
        Whether embeddings are scaled to unit length.
    max_length : int
        Longer texts are cut to this many tokens.
    source : Path or None
        The folder it was read from.
    record : mapping
        What ``isthmus.json`` says of a narrowed network; empty for an original.
    codes : mapping of str to bytes
        Weights that are coded on disk, by name of the parameter; the model holds what they decode to.
    images : ImageInput or None
        What it wants images to be; None for a network that reads text.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 256
    source: Path | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, bytes] = field(default_factory=dict)
    images: ImageInput | None = None

    @property
    def predicts(self) -> bool:
        """Whether its outputs are logits, of classes or of next tokens, rather than embeddings."""
        return self.pooling in ("logits", "tokens")

    @property
    def continues(self) -> bool:
        """Whether it is a language model, whose outputs are many of one text."""
        return self.pooling == "tokens"

    def cache(self) -> Any:
        """Return an empty cache, narrowed as planned, for ``network.model.generate(..., past_key_values=...)``.

        Raises
        ------
        BadInput
            If nothing is planned for this network's cache.
        """
        # Named, not imported, for it stands above this module.
        return importlib.import_module("isthmus.bottlenecks.cache.saving").new_cache(self.model)

    def with_model(self, model: nn.Module, tokenizer: Any = None) -> Network:
        """Return the same network around another model (and tokenizer), whose weights are not coded."""
        return replace(self, model=model, tokenizer=self.tokenizer if tokenizer is None else tokenizer, codes={})


def tokenize(network: Network, texts: Sequence[str], *, multiple: int | None = None) -> dict[str, Tensor]:
    """Return token ids and masks of ``texts``, each ``(batch, tokens)``, padded (to a multiple, where one is given)."""
    if network.tokenizer is None:
        raise BadInput(f"network {network.name}: has no tokenizer; give one to isthmus.open(model, tokenizer=...)")
    encoded = network.tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=network.max_length,
        pad_to_multiple_of=multiple,
        return_tensors="pt",
    )
    return dict(encoded)


def encode(
    network: Network, examples: Sequence[Example] | np.ndarray[Any, Any], *, multiple: int | None = None
) -> dict[str, Tensor]:
    """Return what a network's model takes, by the names of its inputs.

    Parameters
    ----------
    examples : sequence of str or of Image
        Of images also arrays, as `isthmus.pixels.pixel_values` takes them.
    multiple : int, optional
        Texts are padded to a multiple of so many tokens.

    Returns
    -------
    dict of str to Tensor
        Of texts ``input_ids`` and ``attention_mask``, each ``(batch, tokens)``; of images ``pixel_values``,
        ``(batch, channels, height, width)``, float32.

    Raises
    ------
    BadInput
        If the network reads texts and these are images, or the other way round.
    """
    if network.images is None:
        return tokenize(network, texts_of(list(examples), f"network {network.name}"), multiple=multiple)
    if any(isinstance(example, str) for example in examples):
        raise BadInput(f"network {network.name}: reads images, not texts; give a task such as images:PATH")
    from isthmus.pixels import pixel_values

    return {"pixel_values": pixel_values(network.images, examples)}


def outputs(network: Network, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run a network on encoded examples.

    Returns
    -------
    Tensor, shape ``(batch, width)`` or ``(batch, classes)``
        Of a language model ``(tokens that have one before them, vocabulary)``.
    """
    return pool(network, network.model(**inputs, **without_cache(network.model)), inputs.get("attention_mask"))


def without_cache(model: nn.Module) -> dict[str, bool]:
    """Return the argument with which a decoder keeps no keys and values; nothing for any other model."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def pool(network: Network, output: Any, attention_mask: Tensor | None) -> Tensor:
    """Pool a model's output to one vector an example, or, of a language model, one a token that has one before it.

    Parameters
    ----------
    output : ModelOutput
        With ``last_hidden_state`` of shape ``(batch, tokens, width)``, or, of images, ``(batch, width, height, width of
        the map)``, or ``logits`` of shape ``(batch, classes)``.
    attention_mask : Tensor, shape ``(batch, tokens)``, or None
        None where every token counts, as in images.

    Returns
    -------
    Tensor, shape ``(batch, width)`` or ``(batch, classes)``
    """
    if network.predicts:
        logits: Tensor = output.logits
        if not network.continues:
            return logits
        assert attention_mask is not None
        return next_logits(logits, attention_mask)
    hidden: Tensor = output.last_hidden_state
    if hidden.dim() == 4:
        pooled = hidden.mean((2, 3))
    elif network.pooling == "cls":
        pooled = hidden[:, 0]
    elif attention_mask is None:
        pooled = hidden.mean(1)
    else:
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    if network.normalize:
        pooled = pooled / pooled.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return pooled


@contextmanager
def low_precision(enabled: bool | None = None) -> Iterator[None]:
    """Run matrix products in bfloat16 where this CPU has instructions for it (or as ``enabled`` says).

    Training of gates and recovery use it: half the time, the same result within noise. Measurements never do.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    wanted = has_bfloat16() if enabled is None else enabled
    with ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=wanted))
        if wanted and torch.is_grad_enabled():
            # The fused kernel's backward pass is ten times slower in bfloat16 than attention written out: 23 against
            # 2 ms for 64 texts of 16 tokens and 12 heads, 39 % of a training step of MiniLM.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively; emulation would be slower than float32."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def saturates_int8() -> bool:
    """Return whether sums of products of 8 bits can saturate here: on x86 without VNNI, two at a time in 16 bits."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    exact = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return str(capabilities.get("architecture", "")) in ("x86_64", "amd64", "x86") and not exact


def embed(
    network: Network,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Embed texts or images without gradients, texts in batches of like length.

    Returns
    -------
    ndarray, shape ``(examples, width)``, float32
        In the order given. Of a language model ``(examples, 2)``, as `isthmus.continuing.text_nats` returns it.
    """
    import numpy as np
    import torch

    if network.continues:
        return text_nats(network, texts_of(examples, f"network {network.name}"))
    order = sorted(range(len(examples)), key=lambda index: size_of(examples[index]))
    rows: list[Any] = [None] * len(examples)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            pooled = outputs(network, encode(network, [examples[index] for index in batch])).float().numpy()
            for index, row in zip(batch, pooled, strict=True):
                rows[index] = row
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order))
    return np.stack(rows)
