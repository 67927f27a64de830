"""The information plane as a callback of transformers' trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from isthmus.information.plane import InformationPlane


class PlaneCallback(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """Records before training, at steps that are due, and after the last step if it was not."""

    def __init__(self, plane: InformationPlane) -> None:
        self.plane = plane
        self.last = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Record the network as it is given."""
        self._record(int(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Record where the step is due."""
        if state.global_step % self.plane.every == 0:
            self._record(int(state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Record the trained network."""
        self._record(int(state.global_step))

    def _record(self, step: int) -> None:
        if step != self.last:
            self.plane.record(step)
            self.last = step
