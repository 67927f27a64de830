"""Narrowed tiny networks, each site by another share, for tests of what is saved."""

from __future__ import annotations

from typing import Any

import numpy as np

import networks
from isthmus.network import Network
from isthmus.sites.discovery import discover
from isthmus.sites.surgery import narrow_model

RECORD = {"seed": 3, "plan": {"decisions": []}, "measured": {"params": 1.5}}


def uneven(network: Network, seed: int = 0) -> dict[str, list[int]]:
    """Draw which units stay: another share at each site."""
    generator = np.random.default_rng(seed)
    kept = {}
    for site in discover(network):
        count = max(site.minimum, 1, int(site.units * generator.uniform(0.4, 0.9)))
        free = [unit for unit in range(site.units) if unit not in site.fixed]
        chosen = generator.permutation(free)[: max(0, count - len(site.fixed))]
        kept[site.name] = sorted({*site.fixed, *chosen.tolist()})
    return kept


def narrowed(name: str, seed: int = 0) -> Network:
    network = networks.tiny(name)
    sites = discover(network)
    return network.with_model(narrow_model(network.model, sites, uneven(network, seed)))


def auto(name: str) -> Any:
    """The transformers class that opens an artifact of the named network."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if name.endswith("classifier") else AutoModel
