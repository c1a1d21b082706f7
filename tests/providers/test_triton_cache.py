"""The kernels that rotate heads and write caches: their logic in Triton's interpreter, and how they are launched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make

from .cache_in_interpreter import wrong_of
from .test_triton_quant import in_interpreter

pytest.importorskip("triton")

from aiter_ops.check.aot import collect, compile_job
from aiter_ops.check.support import Cause, cause_of

OPS = [op for op in aiter_ops.list_ops() if op.family in ("rope", "kv_cache")]


@pytest.mark.parametrize("family", ["rope", "kv_cache"])
def test_every_sample_equals_its_reference_in_the_interpreter(family: str) -> None:
    result = in_interpreter("triton_in_interpreter.py", family)
    assert set(result["run"]) == {op.name for op in OPS if op.family == family}
    assert min(result["run"].values()) >= 5, result["run"]
    assert not result["wrong"], result["wrong"]


def test_hard_shapes_and_every_code_in_the_interpreter() -> None:
    result = in_interpreter("cache_in_interpreter.py")
    assert result["run"] >= 90
    assert not result["wrong"], result["wrong"]


@pytest.mark.gpu
def test_hard_shapes_and_every_code_on_a_gpu() -> None:
    count, wrong = wrong_of(Make("cuda"))
    assert count >= 70
    assert not wrong, wrong


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, None], ids=["bf16", "FP8"])
def test_caches_beyond_two_to_the_31_elements(dtype: torch.dtype | None) -> None:
    dtype = dtype or aiter_ops.platform().fp8_dtype
    blocks = 2**31 // (16 * 8 * 128) + 2
    k = torch.randn(3, 8, 128, device="cuda", dtype=torch.bfloat16)
    slots = torch.tensor([blocks * 16 - 1, 5, blocks * 16 - 17], device="cuda")
    caches = [torch.zeros(blocks, 16, 8, 128, device="cuda", dtype=dtype) for _ in range(2)]
    aiter_ops.get_op("reshape_and_cache").on("triton")(k, -k, *caches, slots)
    for sign, cache in zip((1, -1), caches, strict=True):
        for token, (block, place) in enumerate(((blocks - 1, 15), (0, 5), (blocks - 2, 15))):
            assert torch.equal(cache[block, place].float(), (sign * k[token]).to(dtype).float())
        assert int((cache.view(torch.uint8)[blocks // 2 :].flatten(1).any(1)).sum()) == 2


@pytest.mark.parametrize("wave", [32, 64])
def test_tiles_are_powers_of_two_that_fit_their_lanes(wave: int) -> None:
    from aiter_ops.providers.triton.tiles import rope as tiles

    for heads in (1, 2, 3, 8, 17, 32, 128):
        for width in (2, 24, 64, 80, 128, 192, 256, 576, 4096, 50000):
            for scattered in (False, True):
                tile = tiles.head_tile(heads, width, scattered)
                assert tile.size >= width
                for n in (tile.tokens, tile.heads, tile.size):
                    assert n & (n - 1) == 0
                assert tile.heads < 2 * heads
                warps = tiles.warps(wave, tile)
                assert warps & (warps - 1) == 0
                assert warps * wave <= 1024
                held = tile.tokens * tile.heads * tile.size / (warps * wave)
                assert held <= (tiles.EACH // (1 + scattered)) * max(1, wave // 32) or width > 8192
                assert tile.programs(5, heads) * tile.tokens * tile.heads >= 5 * heads
                assert tile.programs(0, heads) == tile.programs(5, 0) == 0


def jobs_of(name: str, args: tuple[Any, ...]) -> list[Any]:
    from aiter_ops.providers.triton.launch import compiling_for

    op = aiter_ops.get_op(name)
    with compiling_for(platform_for("gfx942")) as jobs:
        op.implementations["triton"].fn(*op.bind(args, {})[0])
    return list(jobs)


def cache_arguments(tokens: int, slots: int | None = None, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, ...]:
    k = torch.zeros(tokens, 8, 128, dtype=torch.bfloat16)
    caches = [torch.zeros(4, 16, 8, 128).to(dtype) for _ in range(2)]
    return k, k, *caches, torch.zeros(tokens if slots is None else slots, dtype=torch.int64)


def test_one_launch_and_one_form_for_any_number_of_tokens() -> None:
    table = torch.zeros(9, 128)
    forms: dict[str, set[Any]] = {}
    for tokens in (1, 2, 63, 4096):
        at, q = torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens, 32, 128, dtype=torch.bfloat16)
        k, v, *caches = cache_arguments(tokens)
        weight = torch.ones(128, dtype=torch.bfloat16)
        for name, args in (
            ("rotary_embedding", (at, q, k, 128, table, True)),
            ("mrope", (at.expand(3, -1).contiguous(), q, k, 128, table)),
            ("reshape_and_cache", (k, v, *caches)),
            ("concat_and_cache_mla", (k[:, 0], v[:, 0, :64], torch.zeros(4, 16, 192).bfloat16(), caches[2])),
            ("rope_and_cache", (at, q, k, v, table, True, *caches)),
            ("qk_norm_rope_and_cache", (at, q, k, v, weight, weight, 1e-6, table, True, *caches)),
        ):
            (job,) = jobs_of(name, args)
            free = sum(p.do_not_specialize for p in job.kernel.params)
            forms.setdefault(name, set()).add((job.tensors, job.numbers[free:], job.constants, job.num_warps))
        rows = q[None].transpose(1, 2)
        (job,) = jobs_of(
            "apply_rope", (rows, rows, table[:1].expand(tokens, -1).contiguous(), table[:1].expand(tokens, -1))
        )
        forms.setdefault("apply_rope", set()).add((job.constants, job.num_warps))
    assert {name: len(found) for name, found in forms.items()} == dict.fromkeys(forms, 1)


def test_nothing_to_write_is_no_launch() -> None:
    assert jobs_of("reshape_and_cache", cache_arguments(3, 0)) == []
    empty = torch.zeros(3, 0, 128, dtype=torch.bfloat16)
    at = torch.zeros(3, dtype=torch.int64)
    assert jobs_of("rotary_embedding", (at, empty, None, 128, torch.zeros(9, 128), True)) == []
    assert jobs_of("rotary_embedding", (at, empty, empty, 128, torch.zeros(9, 128), True)) == []


def refusal(name: str, arch: str, args: tuple[Any, ...]) -> str | None:
    op = aiter_ops.get_op(name)
    predicate = op.implementations["triton"].predicate
    assert predicate is not None
    refuses = predicate(platform_for(arch))
    assert refuses is not None
    return refuses(*op.bind(args, {})[0])


def test_refusals_have_causes() -> None:
    fn, fnuz = torch.float8_e4m3fn, torch.float8_e4m3fnuz
    assert refusal("reshape_and_cache", "gfx942", cache_arguments(3, dtype=fnuz)) is None
    for arch, dtype in (("gfx942", fn), ("gfx950", fnuz), ("gfx90a", fn), ("sm_90", fnuz)):
        reason = refusal("reshape_and_cache", arch, cache_arguments(3, dtype=dtype))
        assert reason is not None
        assert cause_of("triton", reason) == Cause.TYPE
    k, v, k_cache, v_cache, slots = cache_arguments(3)
    wide = torch.zeros(3, 8, 256, dtype=torch.bfloat16)[..., ::2]
    apart = torch.zeros(4, 16, 8, 256, dtype=torch.bfloat16)[..., ::2]
    pairs = torch.zeros(6, dtype=torch.int64)[::2]
    for args in (
        *((wide, v, k_cache, v_cache, slots), (k, wide, k_cache, v_cache, slots)),
        *((k, v, apart, v_cache, slots), (k, v, k_cache, apart, slots), (k, v, k_cache, v_cache, pairs)),
    ):
        reason = refusal("reshape_and_cache", "gfx942", args)
        assert reason is not None
        assert cause_of("triton", reason) == Cause.FORMAT
    table = torch.zeros(9, 128)
    assert refusal("rotary_embedding", "gfx942", (slots, k, v, 128, table, True)) is None
    assert refusal("rotary_embedding", "gfx942", (pairs, k, v, 128, table, True)) is not None
    assert refusal("rotary_embedding", "gfx942", (slots, k, wide, 128, table, True)) is not None
    shuffled = torch.zeros(4, 8, 16, 16, 8).bfloat16(), torch.zeros(4, 8, 2, 128, 8).bfloat16()
    assert refusal("reshape_and_cache", "gfx942", (k, v, *shuffled, slots, None, None, "shuffled")) is None
    gaps = torch.zeros(4, 8, 16, 16, 16).bfloat16()[..., :8]
    assert refusal("reshape_and_cache", "gfx942", (k, v, gaps, shuffled[1], slots, None, None, "shuffled")) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotary_embedding", "apply_rope", "rope_and_cache", "qk_norm_rope_and_cache"])
def test_what_models_need_is_read_and_written_in_16_bytes_without_lds(name: str) -> None:
    """Also pairs of neighbours: they are taken apart in registers. Shuffled values are scattered by their layout."""
    target, seen = platform_for("gfx942"), 0
    for wanted in collect(aiter_ops.get_op(name), target):
        names = [p.name for p in wanted.job.kernel.params if p.is_constexpr]
        if wanted.model and not dict(zip(names, wanted.job.constants, strict=True)).get("X"):
            report = compile_job(wanted.job, target)
            assert report.spills == report.scratch == report.lds == 0
            assert report.wide_loads
            assert report.wide_stores
            seen += 1
    assert seen >= 2
