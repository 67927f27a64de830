"""Runs kvpress in its own environment: the same rows and questions through each press. Knows nothing of isthmus."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from kvpress import (  # type: ignore[import-not-found]  # lives in its own environment only
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache


def presses(request: dict[str, Any], ratio: float) -> dict[str, Any]:
    """Return the presses by name, at a ratio of what they drop of the prompt."""
    recent = request["recent"]
    return {
        "kvpress window": StreamingLLMPress(compression_ratio=ratio, n_sink=request["sinks"]),
        "kvpress knorm": KnormPress(compression_ratio=ratio),
        "kvpress snapkv": SnapKVPress(compression_ratio=ratio, window_size=recent),
        "kvpress tova": TOVAPress(compression_ratio=ratio),
        "kvpress expected attention": ExpectedAttentionPress(compression_ratio=ratio),
        "kvpress keydiff": KeyDiffPress(compression_ratio=ratio),
    }


@torch.no_grad()
def logits(model: Any, rows: torch.Tensor, prompt: int, chunk: int, press: Any) -> tuple[torch.Tensor, int]:
    """Return the logits from the prompt's last token on, and the bytes of the cache at the end."""
    cache = DynamicCache()
    with press(model) if press is not None else nullcontext():
        out = [model(rows[:, :prompt], past_key_values=cache).logits[:, -1:]]
    start = prompt
    for part in torch.split(rows[:, prompt:-1], chunk, 1):
        places = torch.arange(start, start + part.shape[1])[None].expand(len(rows), -1)
        out.append(model(part, past_key_values=cache, position_ids=places).logits)
        start += part.shape[1]
    taken = sum(one.untyped_storage().nbytes() for layer in cache.layers for one in (layer.keys, layer.values))
    return torch.cat(out, 1).float(), taken


def measured(model: Any, tensors: dict[str, torch.Tensor], request: dict[str, Any], press: Any) -> dict[str, Any]:
    """Return bytes of a sequence, perplexity and recall."""
    read, chunk = request["read"], request["chunk"]
    nats, taken = [], 0
    for rows in torch.split(tensors["rows"], request["batch"]):
        prompt = rows.shape[1] - read
        found, size = logits(model, rows, prompt, chunk, press)
        said = torch.log_softmax(found, -1).gather(-1, rows[:, prompt:, None])
        nats.append(-said.mean().item())
        taken = max(taken, size // len(rows))
    known: dict[str, list[float]] = {}
    for one in request["asked"]:
        ids = tensors[one["name"]]
        first = one["answers"][0][0]
        found, _ = logits(model, ids[None], first, 8, press)
        guessed = found[0].argmax(-1)
        right = [bool((guessed[a - first : b - first] == ids[a:b]).all()) for a, b in one["answers"]]
        known.setdefault(one["kind"], []).append(sum(right) / len(right))
    shares = {kind: sum(values) / len(values) for kind, values in known.items()}
    return {
        "bytes": taken,
        "perplexity": math.exp(sum(nats) / len(nats)),
        "recall": sum(shares.values()) / len(shares),
        **shares,
    }


def main() -> None:
    """Read the request, run every press at every share, and write the points."""
    torch.set_num_threads(1)
    request = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(request["folder"])
    tensors = load_file(folder / "in.safetensors")
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.bfloat16).eval()
    full = measured(model, tensors, request, None)
    points = [{"method": "kvpress, no press", "level": 1.0, **full, "share": 1.0}]
    prompt = tensors["rows"].shape[1] - request["read"]
    held = prompt + request["read"] - 1
    for share in request["shares"]:
        stay = math.floor(share * held) - (request["read"] - 1)
        for name, press in presses(request, 1 - stay / prompt).items():
            try:
                found = measured(model, tensors, request, press)
                points.append({"method": name, "level": share, **found, "share": found["bytes"] / full["bytes"]})
            except Exception as error:  # whatever a press raises, the others still run
                points.append({"method": name, "level": share, "left": f"{type(error).__name__}: {error}"[:120]})
    (folder / "points.json").write_text(json.dumps(points))


if __name__ == "__main__":
    main()
