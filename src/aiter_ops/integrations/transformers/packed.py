"""What attention of every kind shares: what is known of a module, how a call of it is read, and how heads are turned."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aiter_ops.core.op import get_op

from .attend import Recent, Scores
from .recognise import Meaning


@dataclass(frozen=True)
class Attention(Meaning):
    """op: ``paged_attention``, or ``mla_decode`` for attention in a latent space. is_neox: rotations pair elements half
    a head apart, else neighbours; apart: these are moved half a head apart first. angles: ``full``
    (cos and sin, every angle twice), ``half`` (once) or ``complex`` (one tensor of both). scale, window, softcap: of the scores.
    sinks: the module has a parameter ``sinks``. whole: the module's projections are known, and so its forward is
    replaced; otherwise its own forward asks the op for attention alone.
    """

    is_neox: bool = True
    scale: float = 1.0
    window: int | None = None
    softcap: float = 0.0
    sinks: bool = False
    apart: bool = False
    angles: str = "full"
    whole: bool = True

    def scores(self, module: Any) -> Scores:
        return Scores(self.scale, self.window, self.softcap, module.sinks if self.sinks else None)

    def scores_of(self) -> Callable[[Any], Scores]:
        """The same as a function of the module: one object for all calls where there are no sinks, which may be replaced."""
        if self.sinks:
            return self.scores
        fixed = self.scores(None)
        return lambda module: fixed


def is_paged(cache: Any) -> bool:
    """Whether it is a `pages.PagedCache`; that module cannot be imported where transformers is not installed."""
    return type(cache).__name__ == "PagedCache"


class References:
    """The references of the ops by name, for trials: the same whatever the policy and the machine are."""

    def __getattr__(self, name: str) -> Any:
        return get_op(name).reference


def arguments_of(stock: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """Reads what follows hidden_states in a call by the names `stock` gives it."""
    parameters = list(inspect.signature(stock).parameters.values())[2:]
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return lambda args, kwargs: {**dict(zip(named, args, strict=False)), **kwargs} if args else kwargs


def cache_name(stock: Callable[..., Any]) -> str:
    """What a forward calls the cache: ``cache`` from transformers 5.24 on, before that ``past_key_values``."""
    return "cache" if "cache" in inspect.signature(stock).parameters else "past_key_values"


_recent = Recent(4)


def angles(positions: Any) -> tuple[Tensor, Tensor]:
    """cos and sin [B, S, R] as `apply_rope` takes them, of both [B, S, R / 2], or of one complex [B, S, R / 2]."""
    cos, sin = (positions.real, positions.imag) if isinstance(positions, Tensor) else positions
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def turned(q: Tensor, k: Tensor, positions: Any, meaning: Attention, ops: Any) -> tuple[Tensor, Tensor]:
    """q and k [B, heads, S, D] turned."""
    if meaning.apart:
        q, k = moved_apart(q), moved_apart(k)
    if meaning.angles != "full":
        positions = _recent(positions, (), q.device, lambda: angles(positions))
    found: tuple[Tensor, Tensor] = ops.apply_rope(q, k, *positions, meaning.is_neox)
    return found


def moved_apart(x: Tensor) -> Tensor:
    """Elements 2j and 2j + 1 of the last dimension to j and j + half."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
