"""Which rows the programs of a layer take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .align import moe_align
from .peaks import Served


@dataclass(frozen=True)
class Route:
    """kind as in `products.taken`; rows: how many there are; blocks of `block` rows; share: rows of a token.

    ids, owner, expert_map, valid: what `taken` reads, None where it does not; experts: how many are here.
    """

    kind: str
    rows: int
    blocks: int
    block: int
    share: int
    experts: int
    ids: Tensor | None = None
    owner: Tensor | None = None
    expert_map: Tensor | None = None
    valid: Tensor | None = None


def sorted_slots(ids: Tensor, served: Served, block: int) -> Route:
    """Blocks of slots of one expert each."""
    slots, owner, _ = moe_align(ids, block, served.experts, served.expert_map, served.valid)
    return Route("sorted", ids.numel(), owner.numel(), block, ids.shape[1], served.experts, slots, owner)


def single_slots(ids: Tensor, served: Served, block: int) -> Route:
    """A block for every slot, one of its rows in use: nothing to sort."""
    slots = ids.numel()
    return Route("slot", slots, slots, block, ids.shape[1], served.experts, ids, None, served.expert_map, served.valid)


def all_tokens(tokens: int, valid: Tensor | None, block: int) -> Route:
    """All rows in order, of one expert."""
    return Route("all", tokens, -(-tokens // block), block, 1, 1, valid=valid)
