"""Layer-wise reconstruction: after a cut, solve what writes to the residual stream anew, in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.errors import IsthmusError
from isthmus.examples import Example
from isthmus.network import Network, without_cache
from isthmus.progress import Progress, silent
from isthmus.recovery.batches import Batch
from isthmus.recovery.drawing import draw
from isthmus.sites import LAYERS, WIDTH, Site
from isthmus.sites.norms import rms_epsilon


@dataclass(frozen=True)
class _Call:
    """How a model called one of its layers, but for the stream that it passed: masks, position embeddings."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: bool


@dataclass
class _Passage:
    """One micro-batch on its way through both networks: the streams ``(batch, tokens, width)`` before a layer."""

    student: Tensor
    teacher: Tensor
    student_calls: list[_Call]
    teacher_calls: list[_Call]
    mask: Tensor


def reconstruct(
    student: Network,
    teacher: Network,
    sites: Sequence[Site],
    kept: Mapping[str, Sequence[int]],
    examples: Sequence[Example],
    *,
    ridge: float = 0.5,
    progress: Progress = silent,
) -> Network:
    r"""Solve the output projections of attention and FFN anew, layer by layer, by ridge least squares.

    For a projection ``W`` with inputs ``A`` of shape ``(tokens, units)``, all from the network as narrowed and
    reconstructed so far, and the difference ``R`` ``(tokens, width)`` between the original's residual stream (its
    kept units) just after the projection and the narrowed one's, the change of ``W`` minimises

    .. math:: ||A D^T - R||^2 + \lambda ||D||^2, \quad \lambda = ridge \cdot mean(diag(A^T A))

    so that each projection also makes up for what was lost before it. Normal equations are summed in float64.

    Parameters
    ----------
    student : Network
        Changed in place, so that no second copy of it is held.
    teacher : Network
        The original.
    sites : sequence of Site
        The sites of the original.
    kept : mapping of str to sequence of int
        The units that the student kept at each site.
    examples : sequence of str or of Image
        A few hundred. Only those with the same tokens in both networks count.
    ridge : float
        How strongly the projections are held where they are.

    Returns
    -------
    Network
        The student.

    Raises
    ------
    IsthmusError
        If the network has no list of layers on one residual stream, no example has the same tokens in both networks,
        or the solution is not finite.
    """
    by_name = {site.name: site for site in sites}
    if LAYERS not in by_name or WIDTH not in by_name:
        raise IsthmusError(f"reconstruction: network {teacher.name} has no layers on one residual stream")
    layers = by_name[LAYERS]
    stack, ours = teacher.model.get_submodule(layers.module), student.model.get_submodule(layers.module)
    if not (isinstance(stack, nn.ModuleList) and isinstance(ours, nn.ModuleList)):
        raise IsthmusError(f"reconstruction: network {teacher.name} has no list of layers")
    keep = list(kept.get(LAYERS, range(layers.units)))
    rows = torch.as_tensor(list(kept.get(WIDTH, range(by_name[WIDTH].units))), dtype=torch.long)
    # Not inference mode: tensors made there could not be trained on afterwards.
    with torch.no_grad():
        passages = _passages(student, teacher, ours, stack, examples)
        for index, layer in enumerate(stack):
            paths = _projections(sites, f"{layers.module}.{index}.")
            if not all(isinstance(layer.get_submodule(path), nn.Linear) for path in paths):
                raise IsthmusError(f"reconstruction: {layers.module}.{index} does not write with linear maps")
            if index in keep:
                place = keep.index(index)
                _reconstruct_layer(ours[place], layer, place, index, paths, rows, passages, ridge)
                for passage in passages:
                    passage.student = _run(ours[place], passage.student, passage.student_calls[place])
            for passage in passages:
                passage.teacher = _run(layer, passage.teacher, passage.teacher_calls[index])
            progress("reconstruct", index + 1, len(stack))
    return student


def _projections(sites: Sequence[Site], prefix: str) -> list[str]:
    """Return the paths, within a layer, of what writes to the stream: attention's projection, then the FFN's."""
    return [
        part.parameter.removeprefix(prefix).removesuffix(".weight")
        for kind in ("heads", "neurons")
        for site in sites
        if site.kind == kind
        for part in site.slices
        if part.dim == 1 and part.parameter.startswith(prefix)
    ]


def _passages(
    student: Network, teacher: Network, ours: nn.ModuleList, stack: nn.ModuleList, examples: Sequence[Example]
) -> list[_Passage]:
    """Run both models once to see how they call their layers."""
    passages = []
    for batch in draw(examples, student, teacher).once():
        inputs = _aligned(batch)
        if inputs is None:
            continue
        stream, calls = _calls(student.model, ours, inputs[0])
        original, original_calls = _calls(teacher.model, stack, inputs[1])
        if stream.dim() != 3:
            raise IsthmusError(f"reconstruction: network {teacher.name} has no stream of tokens")
        mask = inputs[0].get("attention_mask", torch.ones(stream.shape[:2]))
        passages.append(_Passage(stream, original, calls, original_calls, mask.bool()))
    if not passages:
        raise IsthmusError("reconstruction: no text has the same tokens in both networks; give more texts")
    return passages


def _aligned(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    rows = batch.aligned.nonzero()[:, 0]
    if not len(rows):
        return None
    if "attention_mask" not in batch.student:
        return batch.student, batch.teacher
    longest = int(batch.student["attention_mask"][rows].sum(1).max())
    first, second = (
        {name: tensor[rows, :longest] for name, tensor in side.items()} for side in (batch.student, batch.teacher)
    )
    return first, second


def _calls(model: nn.Module, layers: nn.ModuleList, inputs: dict[str, Tensor]) -> tuple[Tensor, list[_Call]]:
    """Return the stream before the first layer, and how each layer is called."""
    calls: list[_Call] = []
    streams: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not streams:
            streams.append(args[0] if args else kwargs["hidden_states"])
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append(_Call(args[1:], rest, named=not args))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        model(**inputs, **without_cache(model))
    return streams[0], calls


def _run(layer: nn.Module, stream: Tensor, call: _Call) -> Tensor:
    arguments = {"hidden_states": stream} if call.named else {}
    output = layer(*(() if call.named else (stream,)), *call.args, **arguments, **call.kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _streams(
    layer: nn.Module, stream: Tensor, call: _Call, paths: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run a layer; return the input of each projection, and the stream just after what it wrote was added.

    That stream is what the next norm in the layer reads, or where none follows what the layer returns: this holds
    for norms after and before attention and FFN alike.
    """
    inputs: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def projection_hook(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], __: Any) -> None:
            inputs[path] = args[0]

        return hook

    def norm_hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        for path in inputs:
            after.setdefault(path, args[0])

    with ExitStack() as stack:
        for path in paths:
            stack.callback(layer.get_submodule(path).register_forward_hook(projection_hook(path)).remove)
        for module in layer.modules():
            if isinstance(module, nn.LayerNorm) or rms_epsilon(module) is not None:
                stack.callback(module.register_forward_pre_hook(norm_hook).remove)
        result = _run(layer, stream, call)
    for path in inputs:
        after.setdefault(path, result)
    return inputs, after


def _reconstruct_layer(
    ours: nn.Module,
    layer: nn.Module,
    place: int,
    index: int,
    paths: Sequence[str],
    rows: Tensor,
    passages: Sequence[_Passage],
    ridge: float,
) -> None:
    """Solve the projections of layer ``place`` of the student, which was layer ``index``, one after the other."""
    wanted = [_streams(layer, part.teacher, part.teacher_calls[index], paths)[1] for part in passages]
    for path in paths:
        projection = ours.get_submodule(path)
        assert isinstance(projection, nn.Linear)
        size = projection.in_features + (projection.bias is not None)
        gram = torch.zeros(size, size, dtype=torch.float64)
        cross = torch.zeros(size, projection.out_features, dtype=torch.float64)
        for part, target in zip(passages, wanted, strict=True):
            inputs, after = _streams(ours, part.student, part.student_calls[place], [path])
            features = inputs[path][part.mask]
            if projection.bias is not None:
                features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
            missing = target[path][part.mask][:, rows] - after[path][part.mask]
            gram += (features.T @ features).double()
            cross += (features.T @ missing).double()
        apply_solution(projection, gram, cross, ridge)


def apply_solution(projection: nn.Linear, gram: Tensor, cross: Tensor, ridge: float) -> None:
    """Solve the normal equations and add the change to the projection; the bias is free of the ridge."""
    units = projection.in_features
    diagonal = gram.diagonal()
    diagonal[:units] += ridge * diagonal[:units].mean()
    diagonal += 1e-9 * diagonal.mean()  # the equations stay solvable at a ridge of zero
    change = torch.linalg.solve(gram, cross).T
    if not torch.isfinite(change).all():
        raise IsthmusError(
            "reconstruction: no finite solution; check the network for NaN weights or give a larger ridge"
        )
    projection.weight.add_(change[:, :units].to(projection.weight.dtype))
    if projection.bias is not None:
        projection.bias.add_(change[:, units].to(projection.bias.dtype))
