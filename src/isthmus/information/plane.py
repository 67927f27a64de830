"""The information plane of a network while it trains: what each layer shares with the input and with the label."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from isthmus.errors import BadInput
from isthmus.information.activations import Inputs, Pooling, activations, samples_of
from isthmus.information.measuring import mutual_information
from isthmus.information.plane_points import PlanePoint, points_to_json
from isthmus.information.registry import Estimator, get
from isthmus.information.result import Information
from isthmus.storage.files import write_atomic, writing

if TYPE_CHECKING:
    from transformers import TrainerCallback

NOISE = 0.5


class InformationPlane:
    """Records ``I(X; T)`` and ``I(T; Y)`` of layers T on samples that stay the same (Shwartz-Ziv and Tishby 2017).

    A layer without noise of its own shares infinitely much with a continuous input, so noise is added to it: a stated
    share of the layer's own root mean square deviation at that step, the same draws at every step. Both values are
    those of the layer with its noise, so that ``I(T; Y) <= I(X; T)`` holds for the truth. In a layer of many
    dimensions ``I(X; T)`` soon exceeds what so many samples can show: it is then kept as not estimable, with the
    reason.

    Parameters
    ----------
    model : nn.Module
    paths : sequence of str
        Of modules of the model; see `activations` for what is taken of each.
    inputs : Tensor, tuple of Tensor, or mapping of str to Tensor
        The samples: what the model is called with.
    labels : array_like, shape ``(samples,)`` or ``(samples, dims)``
    estimator : str or Estimator
        Of ``I(X; T)``. ``noisy`` never looks at X and takes milliseconds; ``adaptive-bins`` and ``compressed`` are the
        others made for layers without noise. Any other works as well.
    label_estimator : str or Estimator
        Of ``I(T; Y)``.
    noise : float or None
        As a share of the layer's deviation. None: the layer as it is, for layers with noise of their own.
    features : array_like, shape ``(samples, dims)``, optional
        What stands for X. By default the input itself, flattened; token ids need it unless the estimator is ``noisy``.
    pooling : {"mean", "flatten"}
        What becomes of positions; see `activations`. The mean carries less than the whole layer.
    every : int
        Of how many steps a call of the plane records one.
    permutations : int
        For the null of each value; 0 for none.
    seed : int

    Attributes
    ----------
    points : tuple of PlanePoint
        In the order of recording.

    Raises
    ------
    BadInput
        If the samples, labels or parameters cannot be used; a path or estimator is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Sequence[str],
        inputs: Inputs,
        labels: npt.ArrayLike | Tensor,
        *,
        estimator: str | Estimator = "noisy",
        label_estimator: str | Estimator = "auto",
        noise: float | None = NOISE,
        features: npt.ArrayLike | Tensor | None = None,
        pooling: Pooling = "mean",
        every: int = 1,
        permutations: int = 0,
        seed: int = 0,
    ) -> None:
        if isinstance(paths, str) or not paths:
            raise BadInput(f"paths {paths!r}; give a list of one module or more")
        if noise is not None and not (np.isfinite(noise) and noise > 0):
            raise BadInput(f"noise {noise!r}; give a share above 0 of a layer's deviation, or None")
        if every < 1:
            raise BadInput(f"every {every}; give 1 or more steps")
        self.model, self.paths, self.inputs, self.every = model, tuple(paths), inputs, every
        self.noise, self.pooling, self.permutations, self.seed = noise, pooling, permutations, seed
        self.estimator = get(estimator) if isinstance(estimator, str) else estimator
        self.label_estimator = get(label_estimator) if isinstance(label_estimator, str) else label_estimator
        self.labels = torch.as_tensor(labels) if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
        samples = samples_of(inputs)
        self.features = _features(inputs, features, self.estimator.name == "noisy")
        for name, side in (("labels", self.labels), ("features", self.features)):
            if len(side) != samples:
                raise BadInput(f"{len(side)} {name} for {samples} samples; give one for each")
        self.points: tuple[PlanePoint, ...] = ()

    def record(self, step: int) -> tuple[PlanePoint, ...]:
        """Run the model on the samples, estimate both values of each layer, and keep and return the points.

        The model is afterwards as it was: weights, modes, hooks, random numbers. What cannot be estimated at a step (a
        layer that holds NaN, say) is kept with its reason and does not stop the training.
        """
        found = activations(self.model, self.paths, self.inputs, pooling=self.pooling)
        points = tuple(self._point(step, path, found[path].double()) for path in self.paths)
        self.points += points
        return points

    def __call__(self, step: int) -> None:
        """Record where a step is due: the callback of a loop of one's own."""
        if step % self.every == 0:
            self.record(step)

    @contextmanager
    def following(self, optimizer: torch.optim.Optimizer) -> Iterator[InformationPlane]:
        """Record step 0, then after every ``every``-th step of an optimizer; its hook is gone afterwards."""
        step = 0

        def after(*_: Any) -> None:
            nonlocal step
            step += 1
            self(step)

        self.record(0)
        handle = optimizer.register_step_post_hook(after)
        try:
            yield self
        finally:
            handle.remove()

    def trainer_callback(self) -> TrainerCallback:
        """Return a callback for ``transformers.Trainer``: records at both ends, and as a call of the plane would."""
        from isthmus.information.plane_callback import PlaneCallback

        return PlaneCallback(self)

    def to_json(self) -> str:
        """Return the points as JSON; `plane_points.points_from_json` reads them."""
        return points_to_json(self.points)

    def save(self, path: str | Path) -> None:
        """Write the points as JSON, whole or not at all.

        Raises
        ------
        BadInput
            If the place cannot be written to.
        """
        with writing(Path(path)):
            write_atomic(Path(path), self.to_json().encode())

    def _point(self, step: int, path: str, layer: Tensor) -> PlanePoint:
        if not bool(layer.isfinite().all()):
            reason = "the layer holds values that are not finite numbers"
            return PlanePoint(step, path, 0.0, *(self._blank(one, layer, reason) for one in self._estimators))
        size = (self.noise or 0.0) * float((layer - layer.mean(0)).square().mean().sqrt())
        given = size or None
        try:
            about_input = mutual_information(
                self.features, layer, estimator=self.estimator, noise=given, permutations=self.permutations,
                seed=self._seed(path),
            )  # fmt: skip
        except BadInput as error:
            about_input = self._blank(self.estimator, layer, str(error))
        noisy = layer + size * torch.from_numpy(np.random.default_rng(self._seed(path)).normal(size=layer.shape))
        try:
            about_label = mutual_information(
                noisy, self.labels, estimator=self.label_estimator, permutations=self.permutations, seed=self.seed
            )
        except BadInput as error:
            about_label = self._blank(self.label_estimator, layer, str(error))
        return PlanePoint(step, path, size, about_input, about_label)

    @property
    def _estimators(self) -> tuple[Estimator, Estimator]:
        return self.estimator, self.label_estimator

    def _blank(self, estimator: Estimator, layer: Tensor, reason: str) -> Information:
        return Information(None, None, None, estimator.name, len(layer), (0, layer.shape[1]), (), reason)

    def _seed(self, path: str) -> int:
        # A stream of its own for each layer, the same at every step and in every run.
        return (self.seed + zlib.crc32(path.encode())) % 2**32


def _features(inputs: Inputs, features: npt.ArrayLike | Tensor | None, unseen: bool) -> Tensor:
    if features is not None:
        found = features if isinstance(features, Tensor) else torch.from_numpy(np.asarray(features))
        return found.detach().cpu().flatten(1) if found.ndim > 1 else found.detach().cpu()
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs.detach().cpu().flatten(1)
    if unseen:
        return torch.arange(samples_of(inputs), dtype=torch.float64)
    raise BadInput("inputs are not one tensor of floats; give features= that stand for them, or estimator='noisy'")
