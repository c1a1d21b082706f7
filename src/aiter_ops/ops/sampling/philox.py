"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC'11).

Words of 32 bits are held in int64, which is exact: torch multiplies int64 modulo 2^64.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""What the key's words grow by from round to round: the golden ratio and the square root of 3, less one."""

LOW = 0xFFFFFFFF
"""The low word of an int64."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four output words of each counter under each key: words as int64 from 0 to 2^32 - 1, of shapes that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p, q = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (q >> 32 & LOW) ^ c1 ^ k0, q & LOW, (p >> 32 & LOW) ^ c3 ^ k1, p & LOW
        k0, k1 = k0 + WEYL[0] & LOW, k1 + WEYL[1] & LOW
    return c0, c1, c2, c3


def words(seeds: Tensor, offsets: Tensor, columns: int) -> Tensor:
    """The word of every column of every row: int64 [R, columns], values from 0 to 2^32 - 1.

    seeds, offsets: [R] int64. Column c takes output c % 4 of the counter (c // 4, 0, offset low, offset high), words of
    32 bits in the generator's order, under the key (seed low, seed high). Four columns share a counter because a call
    of the generator makes four words; the second counter word is the high half of c // 4.
    """
    block = torch.arange(-(-columns // 4), device=seeds.device)[None, :]
    seed, offset = seeds[:, None], offsets[:, None]
    counter = (block, torch.zeros_like(block), offset & LOW, offset >> 32 & LOW)
    four = philox(counter, (seed & LOW, seed >> 32 & LOW))
    return torch.stack(four, -1).flatten(1)[:, :columns]
