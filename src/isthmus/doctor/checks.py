"""Checks: how far two ways to the same outputs are apart, as a share of the largest value."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from isthmus.network import Network
    from isthmus.sites import Site

_TEXTS = (
    "An isthmus is a narrow strip of land between two wide ones.",
    "The committee met on 14 March 2023, in Geneva; nothing was decided.",
    "def narrow(network): return network",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
    "No.",
)
#: What is no result of its own: kept states and masks.
_ASIDE = ("mask", "ids_restore", "loss")

Kept = Mapping[str, Sequence[int]]
Outputs = dict[str, "Tensor"]


def mask_error(network: Network, sites: Sequence[Site], kept: Kept, generator: np.random.Generator) -> float:
    """Compare closing units with removing them. Closed entries of an output must be zero, the others equal."""
    import torch

    from isthmus.sites import closed_values, gated, narrow_model

    inputs = some_inputs(network, generator)
    with torch.no_grad(), gated(network.model, sites, closed_values(sites, kept)):
        masked = run(network.model, inputs)
    removed = run(narrow_model(network.model, sites, kept), inputs)
    return max(_relative(*_aligned(masked[name], removed[name], sites, kept)) for name in removed)


def vocabulary_error(network: Network, sites: Sequence[Site], keep: Sequence[int]) -> float:
    """Compare the original with the one of fewer tokens, on the pieces that the narrowed tokenizer finds."""
    import torch

    from isthmus.network import tokenize
    from isthmus.sites import VOCABULARY

    small = narrowed(network, sites, {VOCABULARY: keep})
    inputs = tokenize(small, _TEXTS)
    old = torch.as_tensor(list(keep))[inputs["input_ids"]]
    return _largest(run(small.model, inputs), run(network.model, {**inputs, "input_ids": old}))


def saved_error(network: Network, narrow: Network, kept: Kept, generator: np.random.Generator) -> float:
    """Compare a narrowed network with itself after saving and opening it; zero means equal to the last bit.

    A module that no config builds is narrowed anew from its description, and given the weights that were saved. What a
    language model generates, opened again and with its cache, must be what the narrowed one finds likeliest without.
    """
    from isthmus.storage.artifact import save_artifact
    from isthmus.storage.opening import open as open_network

    inputs = some_inputs(narrow, generator)
    with tempfile.TemporaryDirectory(prefix="isthmus-doctor-") as folder:
        place = Path(folder) / "narrowed"
        if not hasattr(getattr(narrow.model, "config", None), "model_type"):
            model = _rebuilt(network.model, narrow.model, kept, place.with_suffix(".safetensors"))
        else:
            save_artifact(narrow, place, {})
            if narrow.tokenizer is None:
                kind: Any = type(narrow.model)
                # A copy, for kernels round differently where weights lie in a mapped file at odd addresses.
                model = copy.deepcopy(kind.from_pretrained(place, dtype="float32").eval())
            else:
                model = open_network(place).model
        error = _largest(run(model, inputs), run(narrow.model, inputs))
        return max(error, _generated_error(model, narrow.model, inputs["input_ids"][:1])) if generates(model) else error


def generates(model: nn.Module) -> bool:
    """Return whether a model continues texts."""
    return bool(getattr(model, "can_generate", lambda: False)())


def _generated_error(model: Any, other: nn.Module, ids: Tensor, count: int = 4) -> float:
    """Return the share of tokens that a model generates which are not those that the other finds likeliest."""
    import torch

    with torch.no_grad():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        likeliest = other(input_ids=found, attention_mask=torch.ones_like(found)).logits.argmax(-1)
    start = ids.shape[1]
    return float((likeliest[:, start - 1 : -1] != found[:, start:]).float().mean())


def _rebuilt(original: nn.Module, narrow: nn.Module, kept: Kept, file: Path) -> nn.Module:
    from safetensors.torch import load_file, save_model

    from isthmus.storage.narrowing import apply_narrowing, describe_narrowing

    description = describe_narrowing(narrow, skeleton=copy.deepcopy(original))
    save_model(narrow, str(file))
    model = copy.deepcopy(original)
    if description is not None:
        apply_narrowing(model, description, type(model).__name__)
    model.load_state_dict(load_file(file), strict=False)
    return model.eval()


def export_error(narrow: Network, generator: np.random.Generator) -> float:
    """Compare what OpenVINO makes of a narrowed network with what PyTorch makes of it."""
    from isthmus.sites.inputs import reads_images

    inputs = some_inputs(narrow, generator)
    if reads_images(narrow) or narrow.tokenizer is None:
        from isthmus.export.checking import run_in_openvino

        found = run_in_openvino(narrow.model, inputs)
        return _largest(_of_tokens(found, inputs), run(narrow.model, inputs))
    return _text_export_error(narrow, inputs)


def _text_export_error(narrow: Network, inputs: dict[str, Tensor]) -> float:
    import torch

    from isthmus.export.engines import export_network, load_runner
    from isthmus.export.wrapper import input_names

    if "token_type_ids" in input_names(narrow):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    wanted = run(narrow.model, inputs)
    with tempfile.TemporaryDirectory(prefix="isthmus-doctor-") as folder:
        runner = load_runner("openvino", export_network(narrow, "openvino", folder), 1)
        found = torch.from_numpy(runner({name: tensor.numpy() for name, tensor in inputs.items()}).copy())
    name = "logits" if "logits" in wanted else "last_hidden_state"
    return _relative(_of_tokens({name: found}, inputs)[name], wanted[name])


def narrowed(network: Network, sites: Sequence[Site], kept: Kept) -> Network:
    """Return a network with some units removed, its tokenizer with it."""
    from isthmus.sites import VOCABULARY, narrow_model
    from isthmus.sites.vocabulary import narrow_tokenizer

    tokenizer = narrow_tokenizer(network.tokenizer, kept[VOCABULARY]) if VOCABULARY in kept else None
    return network.with_model(narrow_model(network.model, sites, kept), tokenizer)


def some_inputs(
    network: Network, generator: np.random.Generator, batch: int = 3, length: int = 12
) -> dict[str, Tensor]:
    """Draw inputs: images, fewer of a large network's; or tokens, the last text padded by half."""
    from isthmus.sites.inputs import random_inputs, reads_images

    if reads_images(network):
        from isthmus.cost.measure import count_parameters
        from isthmus.doctor.diagnosis import LARGE

        count = 1 if count_parameters(network.model) >= LARGE else batch
        return random_inputs(network, count, seed=int(generator.integers(2**31)))
    return _tokens(network, generator, batch, length)


def _tokens(network: Network, generator: np.random.Generator, batch: int, length: int) -> dict[str, Tensor]:
    import numpy as np
    import torch

    config: Any = network.model.config
    special = set(network.tokenizer.all_special_ids) if network.tokenizer is not None else set(range(5))
    special.add(config.pad_token_id)
    words = np.array([token for token in range(config.vocab_size) if token not in special])
    ids = torch.as_tensor(generator.choice(words, size=(batch, length)))
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    if config.pad_token_id is not None:
        ids[-1, length // 2 :] = config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Outputs:
    """Return the outputs that a network is used for; of states, only those of tokens that are not padding."""
    return _of_tokens(_outputs(model, inputs), inputs)


def _of_tokens(found: Outputs, inputs: Mapping[str, Tensor]) -> Outputs:
    mask = inputs.get("attention_mask")
    if mask is None:
        return found
    return {
        name: tensor[mask.bool()] if tensor.dim() == 3 and tensor.shape[:2] == mask.shape else tensor
        for name, tensor in found.items()
    }


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> Outputs:
    import torch

    from isthmus.sites.tracing import named_outputs

    with torch.no_grad():
        output = model(**inputs)
    return {name: tensor for name, tensor in named_outputs(output) if name not in _ASIDE and tensor.is_floating_point()}


def _relative(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest value; infinite where shapes or values are wrong."""
    if found.shape != wanted.shape:
        return float("inf")
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    return error if error == error else float("inf")  # not-a-number is the worst error, not the least


def _largest(found: Outputs, wanted: Outputs) -> float:
    return max(_relative(found[name], wanted[name]) for name in wanted)


def _aligned(masked: Tensor, removed: Tensor, sites: Sequence[Site], kept: Kept) -> tuple[Tensor, Tensor]:
    """Give the removed network's output its old shape, zeros where units went."""
    import torch

    if masked.dim() != removed.dim():
        return removed, masked
    for dim, (old, new) in enumerate(zip(masked.shape, removed.shape, strict=True)):
        if old == new:
            continue
        staying = [torch.as_tensor(entries) for site in sites if (entries := _entries(site, kept, old, new))]
        if staying:
            # Two sites of the same sizes: the output is that of the one which closed entries of it.
            best = max(staying, key=lambda entries: float(masked.index_select(dim, entries).abs().sum()))
            wide = masked.new_zeros((*removed.shape[:dim], old, *removed.shape[dim + 1 :]))
            removed = wide.index_copy_(dim, best, removed)
    return removed, masked


def _entries(site: Site, kept: Kept, old: int, new: int) -> list[int]:
    """Return which of ``old`` entries of an output stay, if this site's units could be what went from it."""
    keep, block = kept.get(site.name), old // site.units
    if keep is None or old % site.units or new != len(keep) * block:
        return []
    return [unit * block + place for unit in keep for place in range(block)]
