"""Packing: nested states (of an optimizer, say) as tensors by name and plain JSON, so that no pickle is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_MARK = "__kind__"


def pack(state: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take the tensors out of a nested state.

    Parameters
    ----------
    state : nested dict, list and tuple of tensors, numbers, text, bool and None
        Keys of dicts may be text or numbers.

    Returns
    -------
    tensors : dict of str to Tensor
    data : dict
        JSON, in which each tensor is a reference.

    Raises
    ------
    TypeError
        If something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {"state": _pack(state, tensors)}


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value
        return {_MARK: "tensor", "name": name}
    if isinstance(value, Mapping):
        items = [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]
        return {_MARK: "dict", "items": items}
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if isinstance(value, float):  # hexadecimal: exact, and able to say infinity
        return {_MARK: "float", "hex": float(value).hex()}
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be packed as tensors and JSON")


def unpack(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Any:
    """Return the state that ``pack`` took apart.

    Raises
    ------
    KeyError, ValueError
        If tensors and data do not belong together.
    """
    return _unpack(data["state"], tensors)


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value[_MARK]
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "float":
        return float.fromhex(value["hex"])
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in value["items"])
    if kind == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["items"]}
    raise ValueError(f"unknown kind {kind!r} in a packed state")


def random_state() -> dict[str, Any]:
    """Return the state of torch's, numpy's and Python's random generators, ready to be packed."""
    import random

    import numpy as np

    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": (str(legacy[0]), torch.from_numpy(legacy[1].astype("int64")), *(value for value in legacy[2:])),
        "python": (version, numbers, gauss),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the random generators back to a state from ``random_state``."""
    import random

    import numpy as np

    torch.set_rng_state(state["torch"])
    name, numbers, *rest = state["numpy"]
    np.random.set_state((name, numbers.numpy().astype("uint32"), *rest))
    random.setstate(state["python"])
