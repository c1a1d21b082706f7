"""Which rows the programs of a layer take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .align import moe_align
from .peaks import Served
from .products import ALL, SINGLE, SORTED


@dataclass(frozen=True)
class Route:
    """kind as in `products.taken`; rows: how many there are; blocks of `block` rows; share: rows of a token.

    weights: the router's [T, k]; ids, owner, expert_map, valid: what `taken` reads; experts: how many are here.
    """

    kind: int
    rows: int
    blocks: int
    block: int
    share: int
    experts: int
    weights: Tensor
    ids: Tensor
    owner: Tensor | None = None
    expert_map: Tensor | None = None
    valid: Tensor | None = None


def sorted_slots(weights: Tensor, ids: Tensor, served: Served, block: int) -> Route:
    """Blocks of slots of one expert each."""
    slots, owner, _ = moe_align(ids, block, served.experts, served.expert_map, served.valid)
    return Route(SORTED.value, ids.numel(), owner.numel(), block, ids.shape[1], served.experts, weights, slots, owner)


def single_slots(weights: Tensor, ids: Tensor, served: Served, block: int) -> Route:
    """A block for every slot, one of its rows in use: nothing to sort."""
    slots, k, experts = ids.numel(), ids.shape[1], served.experts
    return Route(SINGLE.value, slots, slots, block, k, experts, weights, ids, None, served.expert_map, served.valid)


def all_tokens(weights: Tensor, ids: Tensor, served: Served, block: int) -> Route:
    """All rows in order, of one expert."""
    tokens = ids.shape[0]
    return Route(ALL.value, tokens, -(-tokens // block), block, 1, 1, weights, ids, valid=served.valid)
