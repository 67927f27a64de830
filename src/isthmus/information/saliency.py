"""Saliency maps by backpropagation: what each location adds to a gradient, extracted, then aggregated to one number.

Rebuffi et al. 2020 (arXiv 2004.02866): maps differ in what is extracted at a location from the activation x and the
gradient g of the score there, and in how that becomes one number. NormGrad is the norm of the outer product: what the
location adds to the gradient of the weights of a 1x1 convolution inserted there that changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isthmus.errors import BadInput, unknown
from isthmus.information.activations import still

Extraction = Literal["outer", "kernel", "gradient", "linear", "cam"]
Aggregation = Literal["norm", "sum", "max", "positive"]
EXTRACTIONS = ("outer", "kernel", "gradient", "linear", "cam")
AGGREGATIONS = ("norm", "sum", "max", "positive")


@dataclass(frozen=True)
class Seen:
    """What passed a module and what the score's gradient is there.

    Parameters
    ----------
    module : nn.Module
    given, output, gradient : Tensor
        What entered, what left, and the gradient of the score by what left.
    """

    module: nn.Module
    given: Tensor
    output: Tensor
    gradient: Tensor


def saliency(
    model: nn.Module,
    paths: Sequence[str],
    inputs: Tensor | Mapping[str, Tensor],
    classes: Tensor | None = None,
    *,
    extraction: Extraction = "outer",
    aggregation: Aggregation = "norm",
) -> dict[str, Tensor]:
    """Return a saliency map for each module, shape ``(batch, positions)`` or ``(batch, height, width)``.

    NormGrad is ``outer`` with ``norm``, Grad-CAM ``cam`` with ``positive``, gradient times input ``linear`` with
    ``sum``. The model runs in evaluation mode and is afterwards as it was; no gradient is left in its parameters.

    Parameters
    ----------
    paths : sequence of str
        Of modules whose output is ``(batch, channels, height, width)`` or ``(batch, positions, width)``.
    inputs : Tensor or mapping of str to Tensor
        A batch.
    classes : Tensor, shape ``(batch,)``, optional
        Whose logits are explained; by default each sample's likeliest.
    extraction : str
        ``outer``: activation by gradient, all pairs of channels. ``kernel``: the same for the weights of the module
        itself, a convolution or linear map. ``gradient``: g. ``linear``: x g, channel by channel. ``cam``: x times the
        mean of g over locations.
    aggregation : str
        Over what is extracted at a location: its Euclidean ``norm``, its ``sum``, its largest absolute value (``max``),
        or its sum where that is ``positive``.

    Raises
    ------
    BadInput
        If a name is unknown, a module does not run or gives another shape, or the model gives no logits.
    """
    for what, name, known in (("extraction", extraction, EXTRACTIONS), ("aggregation", aggregation, AGGREGATIONS)):
        if name not in known:
            raise unknown(what, name, known)
    seen = observe(model, paths, inputs, classes)
    return {path: _map(path, one, extraction, aggregation) for path, one in seen.items()}


def observe(
    model: nn.Module, paths: Sequence[str], inputs: Tensor | Mapping[str, Tensor], classes: Tensor | None = None
) -> dict[str, Seen]:
    """Run a batch forward and backward and return what passed each module; see `saliency`."""
    known = [name for name, _ in model.named_modules()][1:]
    for path in paths:
        if path not in known:
            raise unknown("module", path, known)
    passed: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    handles = []
    with still(model), torch.enable_grad():
        try:
            for path in paths:

                def hook(_: nn.Module, given: Any, output: Any, path: str = path) -> Tensor:
                    if not isinstance(output, Tensor) or not given or not isinstance(given[0], Tensor):
                        raise BadInput(f"module {path!r} takes or gives something other than a tensor; name another")
                    whole = output if output.requires_grad else output.detach().requires_grad_()
                    # What comes next may write into what it is given: both are kept as they are here.
                    passed[path] = given[0].detach().clone(), output.detach().clone(), whole
                    return whole.clone()

                handles.append(model.get_submodule(path).register_forward_hook(hook))
            found = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        finally:
            for handle in handles:
                handle.remove()
        missing = [path for path in paths if path not in passed]
        if missing:
            raise BadInput(f"module {missing[0]!r} did not run on the inputs; name one that does")
        score = _score(getattr(found, "logits", found), classes)
        gradients = torch.autograd.grad(score, [passed[path][2] for path in paths], allow_unused=True)
    return {
        path: Seen(
            model.get_submodule(path), passed[path][0], passed[path][1],
            torch.zeros_like(passed[path][1]) if gradient is None else gradient.detach(),
        )
        for path, gradient in zip(paths, gradients, strict=True)
    }  # fmt: skip


def contributions(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return the outer product of gradient and activation at each location, shape ``(batch, locations, out, in)``.

    Their sum over locations is the gradient by the weights of a 1x1 convolution.

    Parameters
    ----------
    activation, gradient : Tensor, shape ``(batch, locations, channels)``
        See `locations`.
    """
    return gradient.unsqueeze(-1) * activation.unsqueeze(-2)


def locations(values: Tensor) -> Tensor:
    """Return values with locations in one axis and channels last: ``(batch, locations, channels)``.

    Raises
    ------
    BadInput
        If they have another number of axes than 3 or 4.
    """
    if values.ndim == 4:
        return values.flatten(2).transpose(1, 2)
    if values.ndim != 3:
        shape = tuple(values.shape)
        raise BadInput(f"saliency of shape {shape}: give (batch, channels, height, width) or (batch, positions, width)")
    return values


def combined(maps: Sequence[Tensor], *, weights: Sequence[float] | None = None) -> Tensor:
    """Return one map of several layers': their weighted geometric mean, each divided by its largest value first.

    Parameters
    ----------
    maps : sequence of Tensor, shape ``(batch, height, width)``
        None below 0; brought to the size of the largest by bilinear interpolation.
    weights : sequence of float, optional
        One a map, their sum above 0; by default all alike.

    Returns
    -------
    Tensor, shape ``(batch, height, width)``
        From 0 to 1.

    Raises
    ------
    BadInput
        If maps are of other shapes or below 0, or weights do not fit.
    """
    shares = [1.0] * len(maps) if weights is None else list(weights)
    if not maps or len(shares) != len(maps) or min(shares) < 0 or not sum(shares) > 0:
        raise BadInput(f"{len(maps)} maps and weights {shares}; give one weight of 0 or more for each, not all 0")
    if any(one.ndim != 3 or len(one) != len(maps[0]) or bool((one < 0).any()) for one in maps):
        raise BadInput("maps: give (batch, height, width) each, of one batch, none below 0")
    size = max((one.shape[-2:] for one in maps), key=lambda shape: shape[0] * shape[1])
    total = torch.zeros(len(maps[0]), *size)
    for one, share in zip(maps, shares, strict=True):
        scaled = nn.functional.interpolate(one[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
        largest = scaled.flatten(1).amax(1)[:, None, None].clamp(min=torch.finfo(torch.float32).tiny)
        # A layer of weight 0 has no say, not even by being 0 somewhere.
        total = total + (share * (scaled / largest).log() if share else 0)
    return (total / sum(shares)).exp()


def class_sensitivity(
    model: nn.Module,
    path: str,
    inputs: Tensor | Mapping[str, Tensor],
    *,
    extraction: Extraction = "outer",
    aggregation: Aggregation = "norm",
) -> float:
    """Return by how much a map changes with the class that it explains: 1 less the mean correlation of two maps.

    The two are those of each sample's likeliest and least likely class; their correlation is Pearson's over locations.
    0 where the class makes no difference. Samples whose map is flat are left out.

    Parameters
    ----------
    path : str
    inputs, extraction, aggregation
        See `saliency`.

    Raises
    ------
    BadInput
        As `saliency` does; if all maps are flat.
    """
    with still(model):
        found = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits = getattr(found, "logits", found)
    ends = logits.argmax(-1), logits.argmin(-1)
    options: dict[str, Any] = {"extraction": extraction, "aggregation": aggregation}
    maps = [saliency(model, [path], inputs, end, **options)[path].flatten(1).double() for end in ends]
    centred = [one - one.mean(1, keepdim=True) for one in maps]
    lengths = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    held = lengths > 1e-12 * (maps[0].norm(dim=1) * maps[1].norm(dim=1)).clamp(min=1e-300)
    if not bool(held.any()):
        raise BadInput(f"saliency at {path!r}: all maps are flat; name a module with several positions")
    correlations = (centred[0] * centred[1]).sum(1)[held] / lengths[held]
    return float(1 - correlations.mean())


def _map(path: str, seen: Seen, extraction: Extraction, aggregation: Aggregation) -> Tensor:
    gradient = locations(seen.gradient)
    positions = seen.output.shape[2:] if seen.output.ndim == 4 else seen.output.shape[1:2]
    if extraction in ("outer", "kernel"):
        activation = locations(seen.output) if extraction == "outer" else _read(path, seen)
        found = _of_outer(activation, gradient, aggregation)
    else:
        activation = locations(seen.output)
        values = {
            "gradient": gradient,
            "linear": activation * gradient,
            "cam": activation * gradient.mean(1, keepdim=True),
        }[extraction]
        found = _aggregated(values, aggregation)
    return found.reshape(len(found), *positions)


def _aggregated(values: Tensor, aggregation: Aggregation) -> Tensor:
    if aggregation == "norm":
        lengths: Tensor = values.square().sum(-1).sqrt()
        return lengths
    if aggregation == "max":
        return values.abs().amax(-1)
    return values.sum(-1) if aggregation == "sum" else values.sum(-1).relu()


def _of_outer(activation: Tensor, gradient: Tensor, aggregation: Aggregation) -> Tensor:
    """Return the aggregate of outer products, which are never written out: norms, sums and maxima are products."""
    if aggregation == "positive":
        return (activation.sum(-1) * gradient.sum(-1)).relu()
    return _aggregated(activation, aggregation) * _aggregated(gradient, aggregation)


def _read(path: str, seen: Seen) -> Tensor:
    """Return what a layer's weights were multiplied with at each location, shape ``(batch, locations, inputs)``."""
    module = seen.module
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        padding = (module.padding[0], module.padding[1])
        patches: Tensor = nn.functional.unfold(seen.given, module.kernel_size, module.dilation, padding, module.stride)
        return patches.transpose(1, 2)
    if isinstance(module, nn.Linear):
        return locations(seen.given)
    raise BadInput(f"module {path!r} is no linear map or plain convolution; name one, or extract 'outer'")


def _score(logits: Any, classes: Tensor | None) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise BadInput("saliency: the model gives no logits of shape (batch, classes); wrap it so that it does")
    wanted = logits.argmax(1) if classes is None else classes
    if wanted.shape != logits.shape[:1] or wanted.is_floating_point() or int(wanted.max()) >= logits.shape[1]:
        raise BadInput(f"classes of shape {tuple(wanted.shape)} for logits of {tuple(logits.shape)}; give one for each")
    score: Tensor = logits.gather(1, wanted[:, None].to(logits.device)).sum()
    return score
