"""Narrowing one layer at a time: read from its files, cut, solved and written before the next one is read.

For networks that are too large to hold. Two streams are kept, what the original's layers make of calibration texts and
what the narrowed ones do. A layer is run on the first, its heads and neurons are scored by the energy that they add to
the stream, the same share of each goes in every layer, and the projection of the neurons is solved anew by least
squares so that the second stream is again what the first one is. Peak memory is that of a layer, its narrowed copy, and
what least squares takes.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isthmus.budget import Budget, parse_budget
from isthmus.cost.predict import kept_counts, parameter_rate
from isthmus.errors import BadBudget, BadInput, UnreachableBudget, UnsupportedNetwork
from isthmus.flow import record as records
from isthmus.network import Network, without_cache
from isthmus.progress import Progress, silent
from isthmus.recovery.reconstruct import apply_solution
from isthmus.sites import LAYERS, Site, narrow_model, survey
from isthmus.sites.gates import unit_sums
from isthmus.storage.artifact import check_output, finish_artifact
from isthmus.storage.files import sha256, writing
from isthmus.storage.narrowing import describe_narrowing
from isthmus.storage.stages import StageStore
from isthmus.storage.streamed import TensorFiles, copy_small_files, write_streamed
from isthmus.storage.weights import WEIGHTS_FILE, predicted_bytes
from isthmus.tasks import Task

ROWS, LENGTH = 8, 128
"""Calibration texts and their tokens."""
KINDS = ("heads", "neurons")
RIDGE = 1e-2
_WORDS = 64  # of the small network that a layer is run in
_NEAR = 1e-4


@dataclass(frozen=True)
class Layered:
    """What was written.

    Parameters
    ----------
    folder : Path
    params : tuple of int
        Of the original and of the narrowed network.
    bytes : tuple of int
        Of their weights in files.
    kept : dict of str to int
        Units of a layer that stay, by kind.
    lost : tuple of float
        By layer, how far the narrowed stream is from the original's behind it, as a share of its root mean square.
    """

    folder: Path
    params: tuple[int, int]
    bytes: tuple[int, int]
    kept: dict[str, int]
    lost: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class _Plan:
    """One layer as all are: its sites, named as in a network of this layer alone, and how many units stay."""

    module: str
    layers: int
    sites: tuple[Site, ...]
    counts: dict[str, int]

    def names(self, index: int) -> str:
        return f"{self.module}.{index}."


def narrow_layerwise(
    folder: Path, task: Task, to: str, out: Path, *, resume: bool = False, progress: Progress = silent
) -> Layered:
    """Narrow a decoder one layer at a time.

    Parameters
    ----------
    folder : Path
        A transformers folder with safetensors files; weights are written in the precision that they have there.
    task : Task
        Its training texts are calibrated on.
    to : str
        ``params=60%`` or ``bytes=60%``, or an amount.
    out : Path
        Does not exist yet. Finished layers are kept beside it until it does.
    resume : bool
        Go on with the layers of a run that was stopped.

    Raises
    ------
    BadInput, BadBudget
        If the folder, the texts, the output or the budget cannot be used.
    UnreachableBudget
        If too little would stay.
    UnsupportedNetwork
        If its layers are not alike, or cannot be run one by one.
    """
    started = time.monotonic()
    check_output(out)
    budget = _budget(to)
    files = TensorFiles(folder)
    config = _config(folder)
    pair, one = _small(config, 2), _small(config, 1)
    plan = _planned(pair, one, config, files, budget)
    digest = sha256(folder / "config.json")
    arguments = {"network": [str(folder), digest, len(files.shapes)], "task": task.fingerprint, "to": to}
    stages = StageStore(out.absolute().with_name(f".{out.absolute().name}.stages"), arguments, resume=resume)
    lost: list[float] = []
    streams: dict[str, Tensor] | None = None
    for index in range(plan.layers):
        progress("layers", index, plan.layers)
        name = f"layer-{index}"
        if not stages.done(name):
            if streams is None:
                streams = _streams(stages, index, folder, files, one, task)
            tensors, streams, share = _narrowed_layer(one, plan, files, index, streams)
            stages.save(name, tensors, {"lost": share})
            stages.save("streams", streams, {"layer": index})
            lost.append(share)
        else:
            lost.append(_told(stages, name))
    progress("layers", plan.layers, plan.layers)
    made = {
        "created": records.now(),
        "network": folder.name,
        "task": {"name": task.name, "fingerprint": task.fingerprint},
        "budget": to,
        "kept": plan.counts,
        "lost": lost,
        "versions": records.versions(),
        "machine": records.machine(),
    }
    shapes = _write(folder, files, config, plan, stages, out, made)
    stages.clear()
    before = sum(int(np.prod(shape)) for shape, _ in files.shapes.values())
    after = sum(int(np.prod(shape)) for shape, _ in shapes.values())
    sizes = (predicted_bytes(files.shapes), predicted_bytes(shapes))
    return Layered(out, (before, after), sizes, plan.counts, tuple(lost), time.monotonic() - started)


def _budget(to: str) -> Budget:
    budget = parse_budget(to)
    if len(budget.limits) != 1 or budget.limits[0].currency not in ("params", "bytes"):
        raise BadBudget(f"budget {to!r}: layer by layer it is of params or bytes, one of them; write params=60%")
    return budget


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"network {folder}: no config.json of a network ({str(error)[:120]})") from None
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput(f"network {folder}: is narrowed or quantized already; give the original")
    return config


def _small(config: Any, layers: int) -> Any:
    """Return a network of a few layers and words, as wide as the original; its weights are to be put in its place."""
    from transformers import AutoModelForCausalLM

    few = copy.deepcopy(config)
    kinds = getattr(few, "layer_types", None)
    if kinds and len(set(kinds)) > 1:
        raise UnsupportedNetwork("network: its layers are of several kinds; layer by layer all must be alike")
    few.num_hidden_layers, few.vocab_size = layers, _WORDS
    if kinds:
        few.layer_types = list(kinds)[:layers]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(few, name, None)
    torch.manual_seed(0)
    try:
        return AutoModelForCausalLM.from_config(few, dtype=torch.float32).eval()
    except ValueError as error:
        raise UnsupportedNetwork(f"network: is no decoder of transformers ({str(error)[:120]})") from None


def _planned(pair: Any, one: Any, config: Any, files: TensorFiles, budget: Budget) -> _Plan:
    found = survey(Network("layers", pair, None, "tokens", False, LENGTH)).sites
    chain = next((site for site in found if site.name == LAYERS), None)
    own = tuple(site for site in found if site.kind in KINDS and site.layer == 0)
    if chain is None or not own:
        raise UnsupportedNetwork("network: no layers with heads or neurons were found; narrow it whole")
    if not _runs_alone(pair, one, chain.module):
        raise UnsupportedNetwork("network: what runs before its layers depends on more than words; narrow it whole")
    layers = int(config.num_hidden_layers)
    last = f"{chain.module}.{layers - 1}."
    missing = [last + name for name in _layer_names(one, chain.module) if last + name not in files.shapes]
    if missing:
        raise UnsupportedNetwork(f"network: its files have no {missing[0]}; narrow it whole")
    rate = parameter_rate(pair, found)
    whole = rate(kept_counts(found))
    total = sum(int(np.prod(shape)) for shape, _ in files.shapes.values())
    # What a number takes in the files, so that one budget serves both currencies.
    limit = budget.limits[0]
    item = predicted_bytes(files.shapes) / total if limit.currency == "bytes" else 1.0
    wanted = budget.amounts({limit.currency: total * item})[limit.currency] / item
    widest = max(site.units for site in own)
    for step in range(widest, 0, -1):
        counts = {site.name: max(site.minimum, round(step / widest * site.units)) for site in own}
        left = total + layers * (rate({**kept_counts(found), **counts}) - whole)
        if left <= wanted:
            return _Plan(chain.module, layers, own, counts)
    raise UnreachableBudget(
        f"budget {budget}: heads and neurons of {layers} layers can leave no less than {left / total:.1%}; "
        f"give {limit.currency}={min(1.0, left / total + 0.005):.1%} or narrow it whole"
    )


def _layer_names(one: Any, module: str) -> list[str]:
    return [name for name, _ in one.get_submodule(f"{module}.0").named_parameters()]


@torch.no_grad()
def _runs_alone(pair: Any, one: Any, module: str) -> bool:
    """Return whether two networks of one layer, one after the other, do what the network of both does."""
    one = copy.deepcopy(one)
    stream = pair.get_input_embeddings()(torch.arange(12)[None] % _WORDS)
    wanted = _through(pair, module, stream, 1)
    for index in (0, 1):
        one.get_submodule(f"{module}.0").load_state_dict(pair.get_submodule(f"{module}.{index}").state_dict())
        stream = _through(one, module, stream, 0)
    return bool((stream - wanted).abs().max() <= _NEAR * wanted.abs().max())


def _through(model: Any, module: str, stream: Tensor, last: int, hooks: Sequence[Any] = ()) -> Tensor:
    """Return what a layer makes of a stream ``(rows, tokens, width)``, before whatever comes behind it."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handles = [model.get_submodule(f"{module}.{last}").register_forward_hook(hook)]
    handles += [model.get_submodule(path).register_forward_pre_hook(own) for path, own in hooks]
    try:
        for row in torch.split(stream, 2):
            model(inputs_embeds=row, attention_mask=torch.ones(row.shape[:2], dtype=torch.long), **without_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(seen)


def _streams(
    stages: StageStore, index: int, folder: Path, files: TensorFiles, one: Any, task: Task
) -> dict[str, Tensor]:
    """Return what enters a layer: what was kept, or the embeddings of calibration texts."""
    if index:
        return stages.load("streams")[0]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids: list[int] = []
    for text in task.require_train():
        ids += tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= ROWS * LENGTH:
            break
    rows = len(ids) // LENGTH
    if not rows:
        raise BadInput(f"task {task.name}: {len(ids)} tokens to calibrate on; give {LENGTH} or more")
    given = torch.tensor(ids[: min(rows, ROWS) * LENGTH]).view(-1, LENGTH)
    table = one.get_input_embeddings()
    name = next(name for name, part in one.named_parameters() if part is table.weight)
    if name not in files.shapes:
        raise UnsupportedNetwork(f"network: its files have no {name}; narrow it whole")
    small = table.weight
    table.weight = nn.Parameter(files.load(name).float(), requires_grad=False)
    with torch.no_grad():
        stream = table(given).clone()
    table.weight = small
    return {"original": stream, "narrowed": stream.clone()}


def _told(stages: StageStore, name: str) -> float:
    return float(stages.load(name)[1]["lost"])


@torch.no_grad()
def _narrowed_layer(
    one: Any, plan: _Plan, files: TensorFiles, index: int, streams: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return the tensors of a narrowed layer, by their names in the files, and what leaves it."""
    layer = one.get_submodule(plan.names(0)[:-1])
    layer.load_state_dict({name: files.load(plan.names(index) + name).float() for name in layer.state_dict()})
    energy: dict[str, Tensor] = {}
    hooks = [(site.gates[0].module, _adding(one, site, energy)) for site in plan.sites]
    wanted = _through(one, plan.module, streams["original"], 0, hooks)
    kept = {
        site.name: sorted(energy[site.name].argsort(descending=True)[: plan.counts[site.name]].tolist())
        for site in plan.sites
    }
    small = narrow_model(one, plan.sites, kept)
    narrowed = _solved(small, plan, streams["narrowed"], wanted)
    share = float((narrowed - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
    tensors = {
        plan.names(index) + name: tensor.to(_dtype(files, plan.names(index) + name))
        for name, tensor in small.get_submodule(plan.names(0)[:-1]).state_dict().items()
    }
    return tensors, {"original": wanted, "narrowed": narrowed}, share


def _dtype(files: TensorFiles, name: str) -> torch.dtype:
    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    found = known.get(files.shapes[name][1])
    if found is None:
        raise UnsupportedNetwork(f"network: {name} is of {files.shapes[name][1]}; give weights of 16 or 32 bits")
    return found


def _adding(model: Any, site: Site, energy: dict[str, Tensor]) -> Any:
    """Return a hook that adds up the energy that each unit adds to the stream: of its entries, by their columns'."""
    gate = site.gates[0]
    weight = model.get_submodule(gate.module).weight
    columns = weight.double().square().sum(0)

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        entries = args[0].double().square().sum(tuple(range(args[0].dim() - 1))) * columns
        energy[site.name] = energy.get(site.name, 0) + unit_sums(gate, entries, site.units)

    return hook


def _solved(small: Any, plan: _Plan, stream: Tensor, wanted: Tensor) -> Tensor:
    """Solve the projection of the neurons so that the layer makes what was wanted; return what it makes."""
    site = next((site for site in plan.sites if site.kind == "neurons"), plan.sites[0])
    path = site.gates[0].module
    projection = small.get_submodule(path)
    entered: list[Tensor] = []
    made = _through(small, plan.module, stream, 0, [(path, lambda _, args: entered.append(args[0]))])
    if not isinstance(projection, nn.Linear):
        return made
    features = torch.cat([one.flatten(0, -2) for one in entered])
    if projection.bias is not None:
        features = torch.cat([features, features.new_ones(len(features), 1)], 1)
    missing = (wanted - made).flatten(0, -2)
    apply_solution(projection, (features.T @ features).double(), (features.T @ missing).double(), RIDGE)
    return _through(small, plan.module, stream, 0)


def _write(
    folder: Path, files: TensorFiles, config: Any, plan: _Plan, stages: StageStore, out: Path, made: Mapping[str, Any]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Write the artifact from the finished layers; return the shapes in it."""
    shapes = dict(files.shapes)
    held: dict[int, dict[str, Tensor]] = {}

    def layer(index: int) -> dict[str, Tensor]:
        if index not in held:
            held.clear()
            held[index] = stages.load(f"layer-{index}")[0]
        return held[index]

    for index in range(plan.layers):
        for name, tensor in layer(index).items():
            shapes[name] = (tuple(tensor.shape), files.shapes[name][1])
    inside = f"{plan.module}."

    def load(name: str) -> Tensor:
        index = name[len(inside) :].partition(".")[0] if name.startswith(inside) else ""
        return layer(int(index))[name] if index.isdigit() else files.load(name)

    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(out, needed=predicted_bytes(shapes)):
            partial.mkdir(parents=True)
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            raw["quantization_config"] = _description(config, plan)
            copy_small_files(folder, partial, raw)
            write_streamed(partial / WEIGHTS_FILE, shapes, load)
            finish_artifact(partial, out, made)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return shapes


def _description(config: Any, plan: _Plan) -> dict[str, Any] | None:
    """Return how the narrowed network differs from the one that the config builds, from shapes alone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    sites, kept = [], {}
    for index in range(plan.layers):
        for site in plan.sites:
            own = _renamed(site, plan, index)
            sites.append(own)
            kept[own.name] = list(range(plan.counts[site.name]))
    return describe_narrowing(narrow_model(whole, sites, kept))


def _renamed(site: Site, plan: _Plan, index: int) -> Site:
    """Return a site of the first layer as that of another."""

    def moved(path: str) -> str:
        return plan.names(index) + path[len(plan.names(0)) :] if path.startswith(plan.names(0)) else path

    return replace(
        site,
        name=f"{site.name} {index}",
        slices=tuple(replace(part, parameter=moved(part.parameter)) for part in site.slices),
        gates=tuple(replace(gate, module=moved(gate.module)) for gate in site.gates),
        attributes=tuple(replace(one, module=moved(one.module)) for one in site.attributes),
        layer=index,
    )
