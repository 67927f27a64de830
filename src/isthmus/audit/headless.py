"""A classifier without its head: what its last linear map takes, by a hook that is gone afterwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput


class Headless(nn.Module):
    """A classifier whose output is what its last linear map takes, or its logits where these come from elsewhere."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> BaseModelOutput:
        """Return features as a last hidden state, ``(batch, 1, width)``, or ``(batch, tokens, width)``."""
        last: list[tuple[Tensor, Tensor]] = []

        def keep(module: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> None:
            last[:] = [(taken[0], given)]

        hooks = [module.register_forward_hook(keep) for module in self.model.modules() if isinstance(module, nn.Linear)]
        try:
            logits: Tensor = self.model(**inputs).logits
        finally:
            for hook in hooks:
                hook.remove()
        found = next((taken for taken, given in last if given is logits), logits)
        return BaseModelOutput(last_hidden_state=found[:, None] if found.dim() == 2 else found)
