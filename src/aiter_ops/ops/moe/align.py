"""Tokens in the order of their experts, in blocks that have one expert each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape, bad_value
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample


def most_blocks(slots: int, block: int, experts: int) -> int:
    """Blocks that `slots` choices among `experts` can take at most."""
    return (slots + min(slots, experts) * (block - 1)) // block


def _choices(make: Make, tokens: int, k: int, experts: int) -> Tensor:
    """ids [tokens, k]: k distinct experts a token."""
    drawn = make.normal(tokens, experts, dtype=torch.float32)
    return drawn.argsort(dim=-1, stable=True)[:, :k].to(torch.int32)


def _map(make: Make, total: int, local: int) -> Tensor:
    """An `expert_map` with `local` experts here, in no order."""
    here = make.normal(total, dtype=torch.float32).argsort(dim=0, stable=True)[:local]
    places = torch.full((total,), -1, dtype=torch.int32, device=here.device)
    return places.scatter(0, here, torch.arange(local, dtype=torch.int32, device=here.device))


def _samples(make: Make) -> Iterator[Sample]:
    for name, tokens, k, block, experts in (
        ("decode 1x2", 1, 2, 16, 8),
        ("7x2 of 60, blocks of 80", 7, 2, 80, 60),
        ("33x4 of 60", 33, 4, 16, 60),
        ("blocks of 1", 5, 3, 1, 10),
        ("blocks of 5", 19, 3, 5, 10),
        ("one expert", 9, 1, 3, 1),
        ("more experts than slots", 3, 2, 64, 257),
        ("260x6 of 300, blocks of 2", 260, 6, 2, 300),
        ("3300x5 of 300", 3300, 5, 2, 300),  # a program places slots in two steps
        ("zero rows", 0, 4, 16, 8),
    ):
        yield Sample(name, (_choices(make, tokens, k, experts), block, experts))
    # so that what is not in use begins in other parts of what a program fills at once
    for few in (1, 4, 6, 12):
        yield Sample(f"8x2 of 16, {few} of them chosen", (_choices(make, 8, 2, 16) % few, 70, 16))
    ids = _choices(make, 21, 4, 32)
    yield Sample("all tokens to one expert", (torch.full_like(ids, 5), 16, 32))
    yield Sample("transposed", (_choices(make, 12, 3, 24).t().contiguous().t(), 8, 24))
    yield Sample("sliced", (_choices(make, 12, 9, 24)[:, 2:7], 8, 24))
    yield Sample("ids of -1", (ids.masked_fill(ids % 3 == 0, -1), 8, 32))
    yield Sample("no id is 0 or more", (torch.full_like(ids, -1), 8, 32))
    yield Sample("expert map", (ids, 8, 12, _map(make, 32, 12)))
    yield Sample("expert map with none chosen", (ids % 8, 8, 3, torch.tensor([-1] * 29 + [0, 1, 2]).to(ids)))
    for valid in (0, 10, 30):
        valid_tokens = torch.tensor([valid], dtype=torch.int32, device=ids.device)
        yield Sample(f"{valid} of 21 rows valid", (ids, 8, 32), {"num_valid_tokens": valid_tokens})
    model = _choices(make, 300, 8, 256)
    yield Sample("DeepSeek-V3 300x8 of 256", (model, 16, 256), size="model")
    yield Sample("DeepSeek-V3, a quarter of the experts", (model, 64, 64, _map(make, 256, 64)), size="model")
    yield Sample("Mixtral 4096x2 of 8", (_choices(make, 4096, 2, 8), 128, 8), size="model")
    yield Sample("Qwen3-30B-A3B 3001x8 of 128", (_choices(make, 3001, 8, 128), 64, 128), size="model")
    large = _choices(make, 16384, 8, 512)
    yield Sample("16384x8 of 512", (large, 128, 512), size="model")
    valid_tokens = torch.tensor([9000], dtype=torch.int32, device=large.device)
    yield Sample("16384x8, 9000 rows valid", (large, 64, 512), {"num_valid_tokens": valid_tokens}, "model")
    # in one step each and in several, with more out of use than all programs fill at once
    for tokens, k, block, experts, chosen in (
        (200, 8, 40, 512, 37),
        (129, 2, 7, 257, 257),
        (3000, 6, 3, 290, 290),
        (16, 1, 2, 43, 43),
        (4, 4, 150, 30, 9),
        (5, 3, 33, 64, 64),
    ):
        name = f"{tokens}x{k} of {experts}, {chosen} of them chosen, blocks of {block}"
        yield Sample(name, (_choices(make, tokens, k, experts) % chosen, block, experts))


def _check(
    ids: Tensor, block: int, experts: int, expert_map: Tensor | None = None, num_valid_tokens: Tensor | None = None
) -> None:
    for name, tensor in (("ids", ids), ("expert_map", expert_map), ("num_valid_tokens", num_valid_tokens)):
        if tensor is not None and tensor.dtype != torch.int32:
            raise bad_dtype("moe_align", name, tensor.dtype, (torch.int32,))
    if ids.dim() != 2 or ids.shape[1] < 1:
        raise bad_shape("moe_align", "ids", ids, "[T, k] with k >= 1")
    if block < 1:
        raise bad_value("moe_align", "block", block, "1 or more")
    if experts < 1:
        raise bad_value("moe_align", "experts", experts, "1 or more")
    if ids.numel() + experts * block >= 2**31:
        raise bad_shape("moe_align", "ids", ids, f"fewer than 2^31 slots with {experts} experts of {block}")
    if expert_map is not None and (expert_map.dim() != 1 or expert_map.shape[0] < 1):
        raise bad_shape("moe_align", "expert_map", expert_map, "[E]")
    if num_valid_tokens is not None and num_valid_tokens.numel() != 1:
        raise bad_shape("moe_align", "num_valid_tokens", num_valid_tokens, "one element")


def _fake(
    ids: Tensor, block: int, experts: int, expert_map: Tensor | None = None, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = most_blocks(ids.shape[0] * ids.shape[1], block, experts)
    return ids.new_empty(blocks * block), ids.new_empty(blocks), ids.new_empty(1)


@op(
    "moe",
    samples=_samples,
    results=("sorted_ids", "block_experts", "padded_count"),
    batch_invariant=True,
    fake=_fake,
    check=_check,
    flops=lambda ids, *rest: 2 * ids.numel(),
)
def moe_align(
    ids: Tensor, block: int, experts: int, expert_map: Tensor | None = None, num_valid_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The slots of a routing, grouped by expert and padded per expert to whole blocks.

    ids: [T, k] int32, the experts of each token; slot t·k + j is the j-th choice of token t. block: slots that one
    program of a grouped GEMM takes, all of one expert. experts: how many there are here. expert_map: [E] int32, for
    each expert of the whole model its place here, 0..experts-1, or -1 where it lives elsewhere; without it ids are
    places. Slots are left out whose id or place is -1 (or out of range) or whose token is not among the first
    `num_valid_tokens` (one int32).
    Returns, all int32: sorted_ids [blocks·block], the slots of expert 0, rising, padded with the value T·k to a
    multiple of `block`, then those of expert 1, and so on; an expert without slots takes no block; block_experts
    [blocks], the expert of each block; padded_count [1], how many entries of sorted_ids are in use. The rest of
    sorted_ids is T·k, of block_experts -1. blocks is what T·k slots can take at most, so that sizes follow from shapes.
    Raises TypeError for another dtype, ValueError for another shape, block or experts below 1, or 2^31 slots.
    """
    slots, device = ids.numel(), ids.device
    blocks = most_blocks(slots, block, experts)
    place = ids.reshape(-1).long()
    if expert_map is not None:
        known = (place >= 0) & (place < expert_map.shape[0])
        place = torch.where(known, expert_map.long()[place.where(known, 0)], -1)
    here = (place >= 0) & (place < experts)
    if num_valid_tokens is not None:
        here &= torch.arange(slots, device=device) // ids.shape[1] < num_valid_tokens.reshape(())
    place = place.where(here, experts)  # what is left out comes last
    order = place.argsort(dim=0, stable=True)
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=device).scatter_add(0, place, torch.ones_like(place))
    padded = (counts[:experts] + block - 1) // block * block
    ends = padded.cumsum(0)
    # where the first slot of each expert goes, less its place in `order`
    shift = torch.cat([ends - padded, ends.new_full((1,), blocks * block)]) - (counts.cumsum(0) - counts)
    rank = torch.arange(slots, device=device)
    target = (rank + shift[place[order]]).clamp(max=blocks * block)
    sorted_ids = torch.full((blocks * block + 1,), slots, dtype=torch.int32, device=device)
    # the last entry takes what is left out
    sorted_ids = sorted_ids.scatter(0, target, order.to(torch.int32))[:-1]
    first = torch.arange(blocks, device=device) * block
    owner = torch.searchsorted(ends, first, right=True)
    block_experts = torch.where(first < ends[-1], owner, -1).to(torch.int32)
    return sorted_ids, block_experts, ends[-1:].to(torch.int32)
