"""The zoo: its networks compute what they should, and transformers opens them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

import pictured
from isthmus.errors import BadInput
from isthmus.network import embed
from isthmus.storage.opening import open as open_network
from isthmus.tasks import evaluate, load_task
from isthmus.tasks.data import data_folder
from isthmus.zoo.cifar_config import CifarResNetConfig
from isthmus.zoo.cifar_resnet import CifarResNet

DATA = data_folder()
needs_data = pytest.mark.skipif(DATA is None, reason="no real data: set ISTHMUS_DATA to its folder")


def weights_file(folder: Path, blocks: int = 3, **changes: torch.Tensor) -> Path:
    torch.manual_seed(0)
    state = CifarResNet(CifarResNetConfig(blocks=blocks)).state_dict()
    kept = {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    save_file({**kept, **changes}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def by_hand(state: dict[str, torch.Tensor], images: torch.Tensor, blocks: int) -> torch.Tensor:
    """The network of He et al. 2015, section 4.2, written out from its weights."""

    def normed(values: torch.Tensor, name: str) -> torch.Tensor:
        scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
        shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
        return values * scale[:, None, None] + shift[:, None, None]

    values = F.relu(normed(F.conv2d(images, state["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            inner = F.relu(
                normed(F.conv2d(values, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1")
            )
            inner = normed(F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                width = inner.shape[1]
                wider = torch.zeros_like(inner)
                wider[:, width // 4 : width // 4 + values.shape[1]] = values[:, :, ::2, ::2]
                values = wider
            values = F.relu(inner + values)
    return F.linear(values.mean((2, 3)), state["linear.weight"], state["linear.bias"])


def test_the_resnet_is_the_papers() -> None:
    network = pictured.resnet()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = network.model(pixel_values=images).logits
    torch.testing.assert_close(found, by_hand(network.model.state_dict(), images, 1), rtol=1e-4, atol=1e-4)
    labels = torch.tensor([0, 1, 2, 0])
    assert network.model(pixel_values=images, labels=labels).loss.item() == pytest.approx(
        F.cross_entropy(found, labels).item()
    )


@pytest.mark.parametrize(("kind", "params"), [(3, 269_722), (9, 853_018)])
def test_resnets_have_the_published_size(kind: int, params: int) -> None:
    model = CifarResNet(CifarResNetConfig(blocks=kind))
    assert sum(parameter.numel() for parameter in model.parameters()) == params


def test_a_state_dict_is_opened_saved_and_opened_by_transformers(tmp_path: Path) -> None:
    network = open_network(f"cifar10-resnet20={weights_file(tmp_path)}")
    assert (network.name, network.pooling) == ("cifar10-resnet20", "logits")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    network.model.save_pretrained(tmp_path / "saved")
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert type(opened) is CifarResNet
    for name, value in load_file(weights_file(tmp_path)).items():
        torch.testing.assert_close(opened.state_dict()[name.removeprefix("module.")], value, rtol=0, atol=0)
    assert embed(network, list(images)).shape == (3, 10)  # type: ignore[arg-type]


def test_a_fresh_process_opens_it_after_importing_isthmus(tmp_path: Path) -> None:
    pictured.resnet().model.save_pretrained(tmp_path / "saved")
    code = (
        "import isthmus, sys\n"
        "from transformers import AutoConfig\n"
        "assert AutoConfig.from_pretrained(sys.argv[1]).blocks == 1\n"
        "assert 'torch.nn' not in sys.modules or 'isthmus.zoo.cifar_resnet' not in sys.modules\n"
        "from transformers import AutoModelForImageClassification as A\n"
        "print(type(A.from_pretrained(sys.argv[1])).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["CifarResNet"], done.stderr


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cifar10-resnet20", "give cifar10-resnet20=FILE"),
        ("cifar10-resnet20={}/none.safetensors", "no file"),
        ("cifar10-resnet56={}/weights.safetensors", "not the weights of cifar10-resnet56"),
        ("cifar10-resnet20={}/text.safetensors", "not a whole safetensors file"),
        ("cifar10-resnet20={}/nan.safetensors", "NaN"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, spec: str, said: str) -> None:
    weights_file(tmp_path, **{"module.linear.bias": torch.full((10,), torch.nan)}).rename(tmp_path / "nan.safetensors")
    weights_file(tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(BadInput, match=said):
        open_network(spec.format(tmp_path))


@needs_data
def test_the_pretrained_resnet_is_right_as_often_as_is_known() -> None:
    assert DATA is not None
    file = DATA.parent / "models" / "cifar10-resnet20.safetensors"
    if not file.exists():
        pytest.skip("no pretrained weights")
    network = open_network(f"cifar10-resnet20={file}")
    task = load_task(f"images:{DATA / 'cifar10' / 'train-20k.npz'}")
    found = evaluate(lambda images: embed(network, images, batch_size=250), task, logits=True)
    assert 0.80 < found.value < 0.92
