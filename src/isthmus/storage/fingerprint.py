"""The fingerprint of a network, by which a file knows the network that it belongs to."""

from __future__ import annotations

import hashlib

import torch

from isthmus.network import Network
from isthmus.storage.files import canonical
from isthmus.storage.parts import described_parts
from isthmus.storage.rounding import rounded_inputs


def fingerprint(network: Network) -> str:
    """Return a SHA-256 (hex) over the names, shapes and values of a network's weights, and what is done as it runs."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # As bytes, for numpy knows no bfloat16.
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for path, bits in sorted(rounded_inputs(network.model).items()):
        digest.update(f"{path} rounded to {bits} bits".encode())
    if parts := described_parts(network.model):
        digest.update(canonical(parts))
    return digest.hexdigest()
