"""Narrowing one layer at a time: a random Llama of 1.1 billion parameters, in shards, within 4 GB of resident memory.

Weights are random, so that only memory, time and what is written mean anything. The network is written shard by shard;
the run is stopped half way and goes on, and the artifact's every tensor is looked at without the network being opened.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from claims.data import why_not
from claims.tables import markdown_table
from safetensors.torch import save_file

from isthmus.errors import BadInput, IsthmusError
from isthmus.flow.record import machine, versions
from isthmus.storage.artifact import verify_artifact
from isthmus.storage.files import write_atomic
from isthmus.storage.streamed import TensorFiles
from isthmus.tasks.data import data_folder
from isthmus.zoo.lm_docs_text import FILES, read_documents, train_tokenizer

MOST_BYTES = 4_000_000_000
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
STOPPED_AT = 3
"""Layers after which the first run is stopped."""

Say = Callable[[str], None]


def write_random(folder: Path, shape: Mapping[str, Any] = SHAPE) -> int:
    """Write a random Llama in bfloat16, a file a layer; return its parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():
        place = name.split(".")[2] if ".layers." in name else "words"
        groups.setdefault(place, {})[name] = tuple(parameter.shape)
    table: dict[str, str] = {}
    for place, names in groups.items():
        generator = torch.Generator().manual_seed(len(table))
        file = f"model-{place}.safetensors"
        save_file({name: _random(name, size, generator) for name, size in names.items()}, folder / file)
        table.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return sum(parameter.numel() for parameter in model.parameters())


def _random(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    drawn: torch.Tensor = torch.randn(size, generator=generator) * size[-1] ** -0.5
    return drawn.to(torch.bfloat16)


def run(out: Path, *, to: str = "params=60%", say: Say = print) -> dict[str, Any]:
    """Write, narrow, stop, go on and measure.

    Raises
    ------
    BadInput
        If the data is not on this machine.
    IsthmusError
        If the run fails.
    """
    if missing := why_not(*FILES):
        raise BadInput(f"layerwise: skipped, {missing}")
    data = data_folder()
    assert data is not None
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        place = Path(name)
        say(f"writing a random network of {SHAPE['num_hidden_layers']} layers")
        params = write_random(place / "whole")
        texts = read_documents([data / one for one in FILES]).train[:60]
        train_tokenizer(texts, 2000).save_pretrained(place / "whole")
        (place / "text.txt").write_text("\n".join(texts), encoding="utf-8")
        command = [
            sys.executable, "-m", "isthmus.cli.main", "layerwise", str(place / "whole"),
            "--task", f"lm:{place / 'text.txt'}", "--to", to, "-o", str(place / "small"), "--json", "--quiet",
        ]  # fmt: skip
        say(f"narrowing to {to}, stopped after {STOPPED_AT} layers")
        first = time.monotonic()
        _stop_after(command, place / ".small.stages" / f"layer-{STOPPED_AT - 1}.stage.json")
        first = time.monotonic() - first
        say("going on")
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise IsthmusError(f"layerwise: {(done.stderr.strip().splitlines() or ['failed without a word'])[-1]}")
        found = json.loads(done.stdout)
        verify_artifact(place / "small")
        left = TensorFiles(place / "small")
        found["opened_params"] = sum(torch.Size(shape).numel() for shape, _ in left.shapes.values())
        found["disk_bytes"] = sum(one.stat().st_size for one in (place / "small").glob("*.safetensors"))
        shutil.rmtree(place / "small")
    made = {
        "benchmark": "layerwise",
        "record": {"versions": versions(), "machine": machine(), "shape": dict(SHAPE), "to": to, "params": params},
        "first_seconds": first,
        "result": {key: value for key, value in found.items() if key != "folder"},
        "met": found["peak_bytes"] <= MOST_BYTES and found["opened_params"] == found["params"][1],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, (json.dumps(made, indent=1) + "\n").encode())
    say(f"{found['peak_bytes'] / 1e9:.2f} GB held at most, {found['params'][1]:,} of {params:,} parameters")
    return made


def _stop_after(command: list[str], file: Path, patience: float = 3600.0) -> None:
    """Run a command until a file is there, and kill it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + patience
        while process.poll() is None and not file.exists() and time.monotonic() < end:
            time.sleep(0.2)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        _, told = process.communicate()
    if not file.exists():
        raise IsthmusError(f"layerwise: {(told.strip().splitlines() or ['ended without a layer'])[-1]}")


def section(data: Mapping[str, Any]) -> list[str]:
    """Return the section of docs/benchmarks.md."""
    found, record = data["result"], data["record"]
    rows = [
        ["parameters", f"{record['params']:,}", f"{found['params'][1]:,}"],
        ["bytes of weights", f"{found['bytes'][0]:,}", f"{found['disk_bytes']:,}"],
        ["most memory held, GB", f"{MOST_BYTES / 1e9:.0f} allowed", f"{found['peak_bytes'] / 1e9:.2f}"],
        ["minutes", "", f"{(data['first_seconds'] + found['seconds']) / 60:.1f}"],
    ]
    shape = record["shape"]
    return [
        "## One layer at a time",
        "",
        markdown_table(["", "original", "narrowed"], rows),
        "",
        f"`python -m benchmarks layerwise`: `isthmus layerwise` to {record['to']} on a random Llama in bfloat16, "
        f"{shape['num_hidden_layers']} layers of width {shape['hidden_size']}, killed after {STOPPED_AT} layers and "
        "gone on with. Memory is the most that the process held, libraries included.",
        "",
    ]
