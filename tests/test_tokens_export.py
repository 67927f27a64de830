"""Networks whose tokens leave, in an engine: the same outputs as eager, of any batch and length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import networks
import pictured
import small
from isthmus.bottlenecks.tokens.narrowing import Tokens, narrow_tokens
from isthmus.errors import BadInput
from isthmus.export.engines import engine_embed
from isthmus.export.wrapper import export_program
from isthmus.network import Network, embed
from tokened import policy

IMAGES = Tokens("vit.layers", 3, 17, 1, False)
TEXTS = Tokens("encoder.layer", 3, 12, 1, True)


def exported_and_eager(network: Network, examples: list[object], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return engine_embed(network, "openvino", folder, batch_size=3, threads=1)(examples), embed(network, examples)


@pytest.mark.slow
def test_images_exported_equal_eager(tmp_path: Path) -> None:
    images = list(pictured.pictures_task(60).train[:7])
    network = pictured.vit(num_hidden_layers=2)
    spec = policy("information-degree:merge:share=70%@0")
    found, eager = exported_and_eager(narrow_tokens(network, spec, replace(IMAGES, depth=2)), images, tmp_path)
    np.testing.assert_allclose(found, eager, atol=1e-5)
    assert np.abs(eager - embed(network, images)).max() > 1e-3


@pytest.mark.slow
def test_texts_exported_equal_eager(tmp_path: Path) -> None:
    texts = small.sentences(9)
    network = networks.worded("bert")
    network.model.encoder.layer = network.model.encoder.layer[:2]
    spec = policy("received-attention:merge:share=70%@0")
    found, eager = exported_and_eager(narrow_tokens(network, spec, replace(TEXTS, depth=2)), texts, tmp_path)
    np.testing.assert_allclose(found, eager, atol=1e-5)
    assert np.abs(eager - embed(network, texts)).max() > 1e-3


def test_what_an_export_cannot_hold_is_refused() -> None:
    network = pictured.vit()
    with pytest.raises(BadInput, match="which an export cannot hold"):
        export_program(narrow_tokens(network, policy("class-attention:drop:mass=70%@0"), IMAGES))
    free: Any = object()  # as a length is while a network of text is traced
    with pytest.raises(BadInput, match="give a share"):
        policy("class-attention:drop:count=5@0").schedule.left(0, free, 1)
