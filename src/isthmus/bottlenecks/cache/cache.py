"""The cache of a network: a narrowed layer for each one with full attention, others as transformers has them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from isthmus.bottlenecks.cache.attention import NAME, register
from isthmus.bottlenecks.cache.layer import NarrowLayer
from isthmus.bottlenecks.cache.setting import CacheSetting
from isthmus.errors import BadInput

_HOOK = "_isthmus_cache_hook"


class NarrowCache(Cache):  # type: ignore[misc]
    """A cache for ``model.generate(..., past_key_values=...)`` and for calls of the model.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder; it attends through isthmus from now on, which changes nothing without such a cache.
    settings : CacheSetting or sequence of CacheSetting
        One for every layer, or one a layer; layers of another kind than full attention ignore theirs.

    Raises
    ------
    BadInput
        If the model has no layer with full attention, or there are not as many settings as layers.
    """

    def __init__(self, model: Any, settings: CacheSetting | Sequence[CacheSetting]) -> None:
        attach(model)
        layers = layers_of(model)
        chosen = [settings] * len(layers) if isinstance(settings, CacheSetting) else list(settings)
        if len(chosen) != len(layers):
            raise BadInput(f"cache: {len(chosen)} settings for a network of {len(layers)} layers; give one a layer")
        self.model = weakref.ref(model)
        super().__init__(
            layers=[
                NarrowLayer(setting, index) if type(layer) is DynamicLayer else layer
                for index, (layer, setting) in enumerate(zip(layers, chosen, strict=True))
            ]
        )

    @property
    def narrowed(self) -> list[NarrowLayer]:
        """Return the narrowed layers."""
        return [layer for layer in self.layers if isinstance(layer, NarrowLayer)]

    def allocated_bytes(self) -> int:
        """Return the bytes of the storages of all tensors that the cache holds."""
        return sum(allocated_bytes(layer) for layer in self.layers)

    def shared_bytes(self) -> int:
        """Return the bytes of tables of codes, which all sequences share."""
        return sum(code.shared_bytes() for layer in self.narrowed for code in layer.setting.codes)

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Take the new keys and values of a layer; see `isthmus.bottlenecks.cache.layer.NarrowLayer.update`."""
        if layer_idx >= len(self.layers):
            raise BadInput(
                f"cache: made for {len(self.layers)} layers and given to a network that has layer {layer_idx};"
                " use a cache made for this network"
            )
        before = self.layers[layer_idx - 1] if layer_idx else None
        if isinstance(before, NarrowLayer) and before.pending:
            from isthmus.bottlenecks.cache.layer import not_ours

            raise not_ours(before.index)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def allocated_bytes(layer: Any) -> int:
    """Return the bytes of the storages of all tensors that a layer of a cache holds, each once."""
    if isinstance(layer, NarrowLayer):
        return layer.allocated_bytes()
    held = [one for one in vars(layer).values() if isinstance(one, torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held}.values())


def layers_of(model: Any) -> list[Any]:
    """Return the layers of a full cache for a model, still empty.

    Raises
    ------
    BadInput
        If none of them has full attention.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise BadInput(f"cache: {type(model).__name__} is no transformers model; give a decoder of transformers")
    text = config.get_text_config(decoder=True)
    layers: list[Any] = DynamicCache(config=text).layers
    if not any(type(layer) is DynamicLayer for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers}) or ["none"]
        raise BadInput(
            f"cache: no layer of {type(model).__name__} has full attention (layers: {', '.join(kinds)});"
            " windowed layers hold no more than their window as it is"
        )
    return layers


def attach(model: Any) -> None:
    """Let a model attend through isthmus, and check what it is given; a second time changes nothing.

    Raises
    ------
    BadInput
        If the model does not take an attention function.
    """
    if getattr(model, _HOOK, None) is not None:
        return
    register()
    set_attention = getattr(model, "set_attn_implementation", None)
    if set_attention is None or not getattr(model, "_supports_sdpa", False):
        raise BadInput(f"cache: {type(model).__name__} takes no attention function; a narrowed cache cannot serve it")
    before = model.config._attn_implementation
    set_attention(NAME)
    handle = model.register_forward_pre_hook(_check, with_kwargs=True)
    object.__setattr__(model, _HOOK, (handle, before))


def detach(model: Any) -> None:
    """Undo `attach`."""
    held = getattr(model, _HOOK, None)
    if held is not None:
        held[0].remove()
        model.set_attn_implementation(held[1])
        object.__delattr__(model, _HOOK)


def _check(model: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Refuse a cache of another network, and more tokens than there are positions."""
    cache = keywords.get("past_key_values")
    if not isinstance(cache, NarrowCache):
        return
    owner = cache.model()
    if owner is None or owner is not model:
        raise BadInput(
            f"cache: made for another network than this {type(model).__name__}; make one with NarrowCache(model, ...)"
        )
    given = keywords.get("input_ids", arguments[0] if arguments else None)
    given = keywords.get("inputs_embeds") if given is None else given
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if given is None or positions is None:
        return
    total = cache.get_seq_length() + given.shape[1]
    if total > positions:
        raise BadInput(
            f"cache: {total} tokens with those held, and the network has {positions} positions; shorten the text"
        )
