"""Division by a divisor's inverse, against Python's own: multipliers by exact numbers, the device function as machine code."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from aiter_ops.amdgcn import run_kernel
from aiter_ops.providers.triton.division import MOST, divided_by, inverse

DIVISORS = (1, 2, 3, 5, 7, 64, 96, 127, 128, 129, 641, 2**16 + 1, 2**29 - 1, 2**29 + 1, MOST - 1, MOST)


def near_multiples(divisor: int) -> set[int]:
    """Numbers at multiples of a divisor and beside them, from the first to the last below MOST."""
    last = (MOST - 1) // divisor
    factors = {0, 1, 2, last // 2, last - 1, last, *(random.Random(divisor).randrange(last + 1) for _ in range(50))}
    return {n for f in factors for n in (f * divisor - 1, f * divisor, f * divisor + 1, MOST - 1) if 0 <= n < MOST}


def quotient(number: int, multiplier: int, shift: int) -> int:
    return (4 * number * multiplier >> 32) >> shift


def test_multipliers_give_every_quotient() -> None:
    for divisor in (*DIVISORS, *(random.Random(0).randrange(1, MOST) for _ in range(300))):
        multiplier, shift = inverse(divisor)
        assert 0 < multiplier < 2**31
        assert 0 <= shift <= 30
        for number in near_multiples(divisor):
            assert quotient(number, multiplier, shift) == number // divisor, (number, divisor)


def test_a_multiplier_one_less_or_more_is_noticed() -> None:
    for divisor in (3, 7, 96, 641):
        multiplier, shift = inverse(divisor)
        for other in (multiplier - 1, multiplier + divisor):
            assert any(quotient(n, other, shift) != n // divisor for n in near_multiples(divisor)), divisor


@triton.jit(do_not_specialize=["divisor", "multiplier", "shift"])
def both_kernel(n, quotients, remainders, divisor, multiplier, shift, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    q, r = divided_by(tl.load(n + at), divisor, multiplier, shift)
    # a number of the program, which is the same in every lane
    of_program, _ = divided_by(tl.program_id(0) * 1000003, divisor, multiplier, shift)
    tl.store(quotients + at, q + of_program)
    tl.store(remainders + at, r)


@pytest.mark.parametrize("target", ["gfx942", "gfx1100"])
def test_the_device_function_as_machine_code(target: str) -> None:
    block, programs = 64, 4
    for divisor in DIVISORS:
        some = sorted(near_multiples(divisor))
        n = torch.tensor((some * (block * programs))[-block * programs :], dtype=torch.int32)
        quotients, remainders = torch.empty_like(n), torch.empty_like(n)
        ran = run_kernel(
            both_kernel, (programs,), n, quotients, remainders, divisor, *inverse(divisor), BLOCK=block, target=target
        )
        of_program = torch.arange(programs).repeat_interleave(block) * 1000003 // divisor
        assert torch.equal(quotients, (n // divisor + of_program).int()), divisor
        assert torch.equal(remainders, n % divisor), divisor
    # no estimate that is corrected
    assert "v_rcp" not in ran.text
