"""The engine: tokens leave a network from layer to layer, by hooks around its layers that can be taken off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.bottlenecks.tokens.attention import NAME, WATCH, Watch, register
from isthmus.bottlenecks.tokens.held import MARK, Held, rejoined, started
from isthmus.bottlenecks.tokens.look import Choice, Look, Scored, Stays, chosen
from isthmus.bottlenecks.tokens.policy import TokenNarrowing, check_half
from isthmus.bottlenecks.tokens.schedule import Mass
from isthmus.errors import BadInput

PART = "isthmus_tokens"
"""The name under which a layer holds what narrows its tokens."""
_MASK = "attention_mask"


class NarrowedTokens(nn.Module):
    """What is done to the tokens around one layer; it has no parameters, and is called by hooks.

    Parameters
    ----------
    policy : TokenNarrowing
    layer, layers : int
        Which layer it belongs to, of how many.
    prefix : int
        How many tokens come before those of the example.
    restore : bool
        Whether a token for every first place is given back behind the last layer.
    """

    def __init__(self, policy: TokenNarrowing, layer: int, layers: int, prefix: int, restore: bool) -> None:
        super().__init__()
        self.policy, self.layer, self.layers, self.prefix, self.restore = policy, layer, layers, prefix, restore
        self.handles: tuple[RemovableHandle, ...] = ()

    def hook(self, layer: nn.Module) -> None:
        """Put it around a layer."""
        self.train(layer.training)
        layer.add_module(PART, self)
        self.handles = (
            layer.register_forward_pre_hook(self.before, with_kwargs=True),
            layer.register_forward_hook(self.after, with_kwargs=True),
        )

    def unhook(self, layer: nn.Module) -> None:
        """Take it off again."""
        for handle in self.handles:
            handle.remove()
        delattr(layer, PART)

    def extra_repr(self) -> str:
        """Return what is shown of it."""
        policy = self.policy
        return f"{policy.score.name}, {policy.action.name}, {policy.schedule.name}, layer={self.layer}"

    def before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give a layer the mask of the tokens that are here, and a watch for its attention."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        mask = args[1] if len(args) > 1 else kwargs.get(_MASK)
        held = started(hidden, mask) if self.layer == 0 else getattr(hidden, MARK, None)
        if held is None:
            raise BadInput(
                f"tokens: what enters layer {self.layer} is not what left the layer before it, so tokens cannot be "
                "followed through this network"
            )
        if held.changed:
            own = held.mask(hidden.dtype)
            if len(args) > 1:
                args = (args[0], own, *args[2:])
            else:
                kwargs = {**kwargs, _MASK: own}
        return args, {**kwargs, WATCH: Watch(held, self.layer in self.policy.schedule.layers)}

    def after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Choose among the tokens that left the layer, and mark what stays with what is known of it."""
        watch: Watch = kwargs[WATCH]
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        held = watch.held
        if watch.wanted:
            hidden, held = self._narrowed(hidden, watch)
        hidden, held = rejoined(hidden, held, self.layer)
        if self.layer < self.layers - 1:
            setattr(hidden, MARK, held)
        elif self.restore and held.changed:
            hidden = self.policy.action.restored(hidden, held)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _narrowed(self, hidden: Tensor, watch: Watch) -> tuple[Tensor, Held]:
        policy, tokens = self.policy, hidden.shape[1]
        left = policy.schedule.left(self.layer, tokens, self.prefix)
        if policy.schedule.fixed and (left is tokens or (isinstance(left, int) and left >= tokens)):
            return hidden, watch.held
        if isinstance(tokens, int) and policy.schedule.fixed:
            check_half(policy, self.layer, tokens, left, self.prefix)
        look = self._look(hidden, watch)
        with torch.no_grad():
            scored = policy.score.scored(look)
            choice = self._choice(scored, watch.held, left)
        return policy.action.done(look, scored, choice, self.layers - 1)

    def _look(self, hidden: Tensor, watch: Watch) -> Look:
        if watch.query is None or watch.key is None:
            raise BadInput(
                f"tokens: layer {self.layer} did not show its attention; "
                f'call model.set_attn_implementation("{NAME}") again'
            )
        return Look(hidden, watch.query, watch.key, watch.scaling, watch.held, self.prefix, self.layer)

    def _choice(self, scored: Scored, held: Held, left: int) -> Choice:
        schedule = self.policy.schedule
        if isinstance(schedule, Mass):
            if torch.compiler.is_exporting():
                raise BadInput(
                    "tokens: how many stay by attention mass differs from example to example, which an export cannot "
                    "hold; give a share or count"
                )
            needed = schedule.needed(scored.values, held, self.prefix)
            return chosen(scored, held, self.prefix, int(needed.max()), lambda rank, counted: rank < needed)

        def stays(rank: Tensor, counted: Tensor) -> Tensor:
            return schedule.staying(self.layer, self.prefix, rank, counted)

        ask: Stays | None = None if held.real is None else stays
        return chosen(scored, held, self.prefix, left, ask)


def attach(model: Any, layers: str, policy: TokenNarrowing, *, prefix: int, restore: bool) -> None:
    """Let tokens leave a model, in place; `detach` undoes it.

    Parameters
    ----------
    model : transformers model
    layers : str
        The path of its list of layers.
    policy : TokenNarrowing
    prefix : int
        How many tokens come before those of the example.
    restore : bool
        Whether a token for every first place is given back behind the last layer: for whoever takes the mean over
        places, or looks at one of them.

    Raises
    ------
    BadInput
        If the policy does not fit the model, or its tokens are narrowed already.
    """
    found = model.get_submodule(layers)
    policy.check(len(found), prefix)
    if attached(model):
        raise BadInput("tokens: this network's are narrowed already; take the original")
    register()
    model.set_attn_implementation(NAME)
    for index, layer in enumerate(found):
        NarrowedTokens(policy, index, len(found), prefix, restore).hook(layer)


def attached(model: nn.Module) -> dict[str, NarrowedTokens]:
    """Return what narrows the tokens of a model, by the path of the layer."""
    return {
        path.removesuffix(f".{PART}"): part for path, part in model.named_modules() if isinstance(part, NarrowedTokens)
    }


def detach(model: Any, implementation: str = "sdpa") -> None:
    """Take off again what `attach` put around the layers.

    Parameters
    ----------
    implementation : str
        The attention that the model had.
    """
    for path, part in attached(model).items():
        part.unhook(model.get_submodule(path))
    model.set_attn_implementation(implementation)


@contextmanager
def narrowed(model: Any, layers: str, policy: TokenNarrowing, *, prefix: int, restore: bool = False) -> Iterator[None]:
    """Let tokens leave a model within the context; as `attach` otherwise."""
    before = model.config._attn_implementation
    attach(model, layers, policy, prefix=prefix, restore=restore)
    try:
        yield
    finally:
        detach(model, before)
