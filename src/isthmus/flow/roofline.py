"""The roofline of a network that is never loaded: its config builds it without weights, narrowed by a plan if asked."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.cost.measure import count_parameters
from isthmus.cost.roofline.analysis import Roofline, Row, analyse
from isthmus.cost.roofline.devices import Device, find_device
from isthmus.cost.roofline.elements import elements
from isthmus.cost.roofline.machine import measured_device
from isthmus.cost.roofline.phases import default_phase, trace_phase
from isthmus.cost.roofline.tracing import on_meta
from isthmus.errors import BadInput
from isthmus.flow.study import cache_folder
from isthmus.network import Network
from isthmus.plan import Plan
from isthmus.progress import Progress, silent
from isthmus.sites.discovery import VOCABULARY, discover
from isthmus.sites.surgery import check_kept, narrow_model
from isthmus.storage.fingerprint import fingerprint
from isthmus.storage.narrowing import METHOD, apply_narrowing
from isthmus.storage.opening import MINILM, minilm_folder

HERE = "here"
CONFIG = "config.json"


def roofline(
    source: str | Path | Network | nn.Module,
    *,
    phase: str | None = None,
    batch: int = 1,
    tokens: int | None = None,
    cache_tokens: int | None = None,
    device: str | Device = HERE,
    dtype: str | None = None,
    plan: Plan | None = None,
    engine: str = "openvino",
    threads: int | None = None,
    progress: Progress = silent,
) -> Roofline:
    """Lay a network against a device's roofline: per operator macs, bytes, intensity, bound and predicted time.

    Parameters
    ----------
    source : str, Path, Network or nn.Module
        ``minilm``, a folder with a config.json (or that file), or a network that is open. Weights are never read.
    phase : {"encode", "prefill", "decode"}, optional
        By default ``prefill`` for a network that generates text, ``encode`` for others.
    batch, tokens, cache_tokens
        See ``trace_phase``.
    device : str or Device
        ``here``, measured in the engine when first asked for, or the name of one whose peaks are published.
    dtype : str, optional
        ``float32``, ``bfloat16``, ``int8``, ``int4`` or ``w8a8``; by default the plan's precision, or float32.
    plan : Plan, optional
        Narrow the network so before it is looked at.
    engine : {"openvino", "torch"}
        What runs networks here.
    threads : int, optional
        Of that engine; as many as there are cores when None.

    Raises
    ------
    BadInput
        If there is no config, a name is not known, sizes do not make sense, or the plan is for another network.
    UnsupportedNetwork
        If the network cannot be traced without its weights.
    """
    if isinstance(device, str) and device != HERE:
        device = find_device(device)
    chosen = dtype or (plan.precision if plan is not None else "float32")
    elements(chosen)  # a name that is not known is said before anything is measured
    name, model = skeleton(source)
    notes: list[str] = []
    if plan is not None:
        model = _narrowed(source, name, model, plan)
        if plan.codings:
            notes.append("the plan's codes make the file smaller; what runs reads decoded weights")
    phase = phase or default_phase(model)
    traced = trace_phase(model, phase, batch=batch, tokens=tokens, cache_tokens=cache_tokens)
    if isinstance(device, str):
        device = measure_machine(engine, _computes(chosen), threads=threads, progress=progress)
    else:
        notes.append(f"times are the bound that the published peaks of {device.name} set; nothing was measured on it")
    return analyse(
        traced,
        device,
        elements(chosen, device.activation),
        network=name,
        phase=phase,
        batch=batch,
        parameters=count_parameters(model),
        fused=device.name != HERE or engine != "torch",
        notes=notes,
    )


def _computes(dtype: str) -> str:
    if dtype == "w8a8":
        raise BadInput("device here: products of integers are not measured; give float32, bfloat16, int8 or int4")
    return "bfloat16" if dtype == "bfloat16" else "float32"


def measure_machine(
    engine: str = "openvino",
    dtype: str = "float32",
    *,
    threads: int | None = None,
    folder: str | Path | None = None,
    progress: Progress = silent,
) -> Device:
    """Return this machine as a device: peak, bandwidth and efficiency in an engine, measured once and then read.

    Parameters
    ----------
    engine : {"openvino", "torch"}
    dtype : {"float32", "bfloat16"}
    threads : int, optional
        As many as there are cores when None.
    folder : str or Path, optional
        Where the figures are kept; by default the cache folder of Isthmus.

    Raises
    ------
    BadInput
        If the engine or the element type is unknown.
    """
    from isthmus.export.probing import check_probing, time_probes

    check_probing(engine, dtype)

    def measure(probes: Any) -> Mapping[Any, float]:
        def said(done: int, total: int) -> None:
            progress("measuring this machine", done, total)

        return time_probes(probes, engine, dtype, threads=threads, progress=said)

    return measured_device(
        measure,
        engine=engine,
        version=importlib.metadata.version(engine),
        dtype=dtype,
        threads=threads,
        folder=cache_folder() if folder is None else folder,
    )


def skeleton(source: str | Path | Network | nn.Module) -> tuple[str, nn.Module]:
    """Return the name of a network and its modules on the meta device, without reading weights.

    Raises
    ------
    BadInput
        If there is no config there, or transformers cannot build what it says.
    """
    if isinstance(source, Network):
        return source.name, on_meta(source.model)
    if isinstance(source, nn.Module):
        return type(source).__name__, on_meta(source)
    folder = _folder(source)
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError:
        raise BadInput(f"network {source}: no {CONFIG} there; give minilm or a folder that holds one") from None
    except ValueError as error:
        raise BadInput(f"{folder / CONFIG}: not JSON ({error}); restore the file") from None
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise BadInput(f"{folder / CONFIG}: no model_type; give the config of a transformers model")
    description = raw.pop("quantization_config", None)
    model = _build(folder, raw)
    if isinstance(description, dict) and description.get("quant_method") == METHOD:
        saved_as = (raw.get("architectures") or [None])[0]
        apply_narrowing(model, {**description, "coded": None}, saved_as)
    name = MINILM if str(source) == MINILM else folder.resolve().name
    return name, model.eval()


def _folder(source: str | Path) -> Path:
    if str(source) == MINILM:
        return minilm_folder()
    path = Path(source)
    return path.parent if path.name == CONFIG else path


def _build(folder: Path, raw: Mapping[str, Any]) -> nn.Module:
    import transformers

    named = [getattr(transformers, str(name), None) for name in raw.get("architectures") or ()]
    kind: Any = next((one for one in named if isinstance(one, type) and issubclass(one, nn.Module)), None)
    try:
        settings = {key: value for key, value in raw.items() if key not in ("model_type", "dtype", "torch_dtype")}
        config = transformers.AutoConfig.for_model(str(raw["model_type"]), **settings)
        with torch.device("meta"):
            model: nn.Module = kind(config) if kind is not None else transformers.AutoModel.from_config(config)
    except Exception as error:  # transformers raises many kinds; each means that the config says nothing it can build
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(f"{folder / CONFIG}: transformers cannot build it ({reason[:200]}); mend the config") from None
    return model


def _narrowed(source: str | Path | Network | nn.Module, name: str, model: nn.Module, plan: Plan) -> nn.Module:
    """Return what a plan makes of a network, without weights."""
    if isinstance(source, Network) and plan.fingerprint != fingerprint(source):
        raise BadInput(f"plan for {plan.network}: was made for other weights than those of {name}; plan again")
    tokenizer = source.tokenizer if isinstance(source, Network) else None
    if tokenizer is None and any(decision.kind == VOCABULARY for decision in plan.decisions):
        tokenizer = _tokenizer(source)
    sites = discover(Network(name, model, tokenizer))
    units = {site.name: site.units for site in sites}
    for decision in plan.decisions:
        if decision.site in units and decision.units != units[decision.site]:
            raise BadInput(
                f"plan for {plan.network}: site {decision.site} has {decision.units} units there and "
                f"{units[decision.site]} in {name}; plan again for this network"
            )
    kept = {decision.site: decision.keep for decision in plan.decisions}
    check_kept(sites, kept)
    return narrow_model(model, sites, kept)


def _tokenizer(source: str | Path | Network | nn.Module) -> Any:
    from transformers import AutoTokenizer

    if not isinstance(source, str | Path):
        raise BadInput("plan: narrows the vocabulary, and this network has no tokenizer; open it with one")
    folder = _folder(source)
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception:  # transformers raises many kinds; each means that there is no tokenizer that can be read
        raise BadInput(f"plan: narrows the vocabulary, and {folder} has no tokenizer; put it there") from None


def as_json(found: Roofline) -> dict[str, Any]:
    """Return a roofline as plain data: totals, by kind, by layer, and every kernel."""

    def row(one: Row) -> dict[str, Any]:
        return {**asdict(one), "bytes": one.bytes, "intensity": one.intensity, "bound": one.bound}

    rows: Callable[[tuple[Row, ...]], list[dict[str, Any]]] = lambda group: [row(one) for one in group]  # noqa: E731
    return {
        "network": found.network,
        "phase": found.phase,
        "batch": found.batch,
        "dtype": found.elements.name,
        "device": {
            "name": found.device.name,
            "source": found.device.source,
            "peaks": dict(found.device.peaks),
            "bandwidth": found.device.bandwidth,
            "balance": found.balance,
        },
        "parameters": found.parameters,
        "cache_bytes": found.cache_bytes,
        "total": row(found.total),
        "kinds": rows(found.by_kind()),
        "layers": rows(found.by_layer()),
        "operators": rows(found.rows),
        "notes": list(found.notes),
    }
