"""The fingerprint of a network's weights, by which a file knows the network that it belongs to."""

from __future__ import annotations

import hashlib

import numpy as np

from isthmus.network import Network


def fingerprint(network: Network) -> str:
    """Return a SHA-256 (hex) over the names, shapes and values of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.detach().numpy()).data)
    return digest.hexdigest()
