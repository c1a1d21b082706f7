"""The kernels of attention over paged caches: their logic in Triton's interpreter, their tiles, splits and launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make
from aiter_ops.ops.attention.paged_plan import MOST_ROWS
from aiter_ops.ops.attention.paged_samples import batch, planned

from .test_triton_quant import in_interpreter

pytest.importorskip("triton")

ARCHS = ("sm_90", "sm_100", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250")


def test_the_kernels_equal_the_references_in_the_interpreter() -> None:
    result = in_interpreter("paged_in_interpreter.py")
    assert min(result["run"].values()) >= 6, result["run"]
    assert not result["wrong"], result["wrong"]
    assert all(result["noticed"]), "a control was not noticed"


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_are_powers_of_two_that_a_machine_can_hold(arch: str) -> None:
    from aiter_ops.providers.triton.tiles.paged import paged_tile

    machine = platform_for(arch)
    for width in (16, 32, 64, 128, 256):
        for cached, size in ((2, 2), (1, 2), (4, 4), (1, 4)):
            seen = []
            for rows in (1, 16, 17, 33, MOST_ROWS, MOST_ROWS + 1):
                tile = paged_tile(machine, rows, width, cached, size)
                for number in (tile.rows, tile.keys, tile.num_warps):
                    assert number & (number - 1) == 0
                assert tile.rows >= 16
                assert tile.keys >= 16
                assert tile.num_warps * machine.wave_size <= 1024
                # factors of both products for the steps in flight, as Triton's pipeliner holds them
                assert 2 * tile.keys * width * cached * max(tile.num_stages - 1, 1) <= machine.lds
                seen.append(tile.rows)
            assert seen == sorted(seen)


@pytest.mark.parametrize("arch", ["sm_90", "gfx942", "gfx1100"])
def test_splits_fill_the_machine_and_follow_lengths_in_few_kinds(arch: str) -> None:
    from aiter_ops.providers.triton.tiles.paged import FAMILIES, LONG, MOST_SPLITS, ROUNDS, UNITS, family, splits_of

    machine = platform_for(arch)
    slots = UNITS * FAMILIES[family(machine)].resident
    for tiles in (1, 8, 64, 128, 300, 1024):
        for steps in (0, 1, 4, 32, 512, 2048):
            splits = splits_of(machine, tiles, steps)
            assert 1 <= splits <= max(1, min(MOST_SPLITS, steps // 2))
            if tiles > ROUNDS * slots // 2 or steps < 4 or (tiles >= slots and steps < 2 * LONG):
                assert splits == 1
            elif tiles * min(MOST_SPLITS, steps // 2) >= slots:
                waves = tiles * splits / slots
                assert waves / -(-tiles * splits // slots) >= 0.7


def launches(args: tuple[Any, ...], arch: str = "gfx942", **named: Any) -> list[tuple[Any, ...]]:
    """Kernel, rows of a tile and whether it follows a plan, of each launch in order."""
    from aiter_ops.providers.triton.launch import compiling_for

    op = aiter_ops.get_op("paged_attention")
    values, rest = op.bind(args, named)
    with compiling_for(platform_for(arch)) as jobs:
        op.implementations["triton"].fn(*values, **rest)
    return [
        (j.kernel.__name__, j.constants[-3], j.constants[-1]) if j.kernel.__name__ == "paged_kernel" else ("merge",)
        for j in jobs
    ]


def test_what_is_launched_follows_from_shapes() -> None:
    make, half = Make(values=False), {"dtype": torch.bfloat16, "heads": (8, 2)}
    assert launches(batch(make, (1,) * 300, (20,) * 300, **half)) == [("paged_kernel", 16, False)]
    decode = batch(make, (1,) * 4, (2000,) * 4, **half)
    assert launches(decode) == [("paged_kernel", 16, False), ("merge",)]
    assert launches(decode, plan=planned(decode, 64)) == [("paged_kernel", 16, True), ("merge",)]
    mixed = batch(make, (1, 1, 300), (20, 20, 300), **half)
    one, many = ("paged_kernel", 64, False), ("paged_kernel", 128, False)
    assert [found for found in launches(mixed) if found != ("merge",)] == [many, one]
    prompts = batch(make, (300, 300), (300, 300), **half)
    assert [found for found in launches(prompts) if found != ("merge",)] == [many]
    assert launches(batch(make, (1, 1), (20, 20), heads=(8, 2), size=256, dtype=torch.bfloat16), "gfx1100") == [
        ("paged_kernel", 16, False)
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(3, 4, 320), "k_cache": torch.zeros(9, 16, 2, 320)}, "head size <= 256"),
        ({"out": torch.zeros(3, 4, 64)[..., ::2]}, "stride 1"),
        ({"k_cache": torch.zeros(9, 16, 2, 64)[..., ::2]}, "strides"),
        ({"k_cache": torch.zeros(9, 16, 2, 32, dtype=torch.float8_e4m3fn)}, "asked for float8_e4m3fn"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(change: dict[str, Any], words: str) -> None:
    op = aiter_ops.get_op("paged_attention")
    sample = next(op.samples(size="small"))
    given = {**dict(zip(op.parameters, op.bind(sample.args, sample.kwargs)[0], strict=False)), **change}
    predicate = op.implementations["triton"].predicate(platform_for("gfx942"))
    assert words in str(predicate(**given))
