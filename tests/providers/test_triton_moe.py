"""The kernels of experts: their logic in Triton's interpreter, refusals, tiles; bf16 and FP8 are proven on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import aiter_ops
from aiter_ops.core.platforms import platform_for
from aiter_ops.core.samples import Make
from aiter_ops.ops.moe.samples import layer

pytest.importorskip("triton")

from aiter_ops.check.aot import _Undrawn
from aiter_ops.providers.triton.launch import Job, compiling_for
from aiter_ops.providers.triton.tiles import moe as tiles

from .test_triton_quant import in_interpreter

OP = aiter_ops.get_op("fused_moe")
SMALL = {s.name: s for s in OP.samples(size="small")}
ARCHS = ("sm_90", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250")


@pytest.mark.slow
def test_the_experts_equal_their_reference_in_the_interpreter() -> None:
    result = in_interpreter("moe_in_interpreter.py")
    assert len(result["run"]) >= 30
    assert not result["wrong"], result["wrong"]


def refusal(name: str, arch: str) -> str | None:
    sample = SMALL[name]
    ask = OP.implementations["triton"].predicate
    assert ask is not None
    args, named = OP.bind(sample.args, sample.kwargs)
    predicate = ask(platform_for(arch))
    return predicate(*args, **named) if predicate else None


def test_fp8_is_refused_with_the_reason_where_the_target_has_none() -> None:
    assert "gfx90a has no FP8 type" in (refusal("per block float8_e4m3fn", "gfx90a") or "")
    assert "gfx942 has float8_e4m3fnuz" in (refusal("per token float8_e4m3fn", "gfx942") or "")
    assert "gfx1100 has no FP8 type" in (refusal("mxfp4_fp8", "gfx1100") or "")
    assert "asked for float8_e4m3fn" in (refusal("x holds codes, per token", "gfx90a") or "")
    assert refusal("per block float8_e4m3fnuz", "gfx942") is None
    for arch in ARCHS:
        for name in (
            "7 tokens fp16",
            "per token int8",
            "mxfp4",
            "mxfp4 fp16",
            "shuffled weights",
            "gpt-oss form, mxfp4",
        ):
            assert refusal(name, arch) is None


def test_an_expert_that_32_bits_cannot_address_is_refused() -> None:
    (x, w1, w2, weights, ids), _ = layer(Make(values=False), 2, 2, 1, 32, 32)
    wide = w1[:, :1, :1].expand(2, 2**26 + 64, 32)
    predicate = OP.implementations["triton"].predicate(platform_for("sm_90"))
    args, named = OP.bind((x, wide, w2, weights, ids), {})
    assert "wider than" in predicate(*args, **named)


def test_one_scale_for_all_tokens_is_refused_where_the_batch_must_not_count() -> None:
    with aiter_ops.use(batch_invariant=True):
        assert "follows the batch" in (refusal("per tensor int8", "sm_90") or "")
        assert refusal("static int8", "sm_90") is None
    assert refusal("per tensor int8", "sm_90") is None


def launched(tokens: int, quant: str, arch: str) -> set[Job]:
    """The products that a layer of `tokens` tokens launches; sizes of Qwen3-30B-A3B with few experts."""
    codes = {"per_token": torch.int8, "per_block": platform_for(arch).fp8_dtype, "mxfp4": torch.uint8}
    target = platform_for(arch, compute_units=132)
    args, named = layer(_Undrawn(), tokens, 8, 4, 2048, 768, quant, codes=codes.get(quant, torch.bfloat16), shared=768)
    args, kwargs = OP.bind(args, named)
    with compiling_for(target) as jobs:
        OP.implementations["triton"].source(*args, **kwargs)
    products = [j for j in jobs if j.kernel.__name__ in ("layer_kernel", "token_kernel")]
    return {replace(j, tensors=(), numbers=()) for j in products}


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_follow_the_tokens_only_where_they_may(arch: str) -> None:
    """Batch invariance on all targets: the same products, with the same steps, for any number of tokens."""
    quants = ("none", "per_token", "mxfp4") + (("per_block",) if platform_for(arch).fp8_types else ())
    for quant in quants:
        assert len({frozenset(launched(n, quant, arch)) for n in (1, 20, 100, 3000)}) >= 3
        with aiter_ops.use(batch_invariant=True):
            assert len({frozenset(launched(n, quant, arch)) for n in (1, 2, 20, 100, 3000)}) == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_tiles_fit_scales_and_the_machine(arch: str) -> None:
    machine = platform_for(arch, compute_units=132)
    for size, kind in ((2, "plain"), (4, "plain"), (1, "plain"), (1, "block"), (1, "mx")):
        for slots in (1, 64, 200, 5000, 70000):
            rows = tiles.block_rows(machine, slots, 8, kind, False)
            assert rows <= 16 or slots > 8 * 8
            for depth in (128, 7168) if kind == "block" else (37, 96, 128, 192, 2880, 7168):
                for gated in (False, True):
                    tile = tiles.expert_tile(machine, rows, -(-slots // rows), 4096, depth, size, kind, gated)
                    assert tile.num_warps * machine.wave_size <= 1024
                    if kind == "block":
                        # the rows of a tile have one scale, those of its gates one and those of its ups one
                        assert tile.depth == 128
                        assert tile.columns <= (256 if gated else 128)
                    else:
                        assert kind == "mx" or depth % tile.depth == 0 or tile.depth == 32


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["150 tokens", "per block float8_e4m3fn", "mxfp4", "per token int8", "shared expert"])
def test_tokens_alone_and_in_a_batch_are_the_same_to_the_bit(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    sample = next(s for s in OP.samples("cuda", size="small") if s.name == name)
    (x, w1, w2, weights, ids), named = sample.args, sample.kwargs
    if reason := OP.implementations["triton"].refuses(*sample.args, **OP.bind(sample.args, named)[1]):
        pytest.skip(reason)
    with aiter_ops.use(batch_invariant=True):
        run = OP.on("triton")
        whole = run(x, w1, w2, weights, ids, **named)
        for first, last in ((0, 1), (2, 5), (1, len(x))):
            rows = slice(first, last)
            part = run(x[rows].clone(), w1, w2, weights[rows].clone(), ids[rows].clone(), **named)
            assert torch.equal(part, whole[rows])


@pytest.mark.gpu
def test_a_call_repeats_to_the_bit() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    args, named = layer(Make("cuda"), 700, 16, 4, 512, 256, shared=256)
    first = OP.on("triton")(*args, **named)
    for _ in range(5):
        assert torch.equal(OP.on("triton")(*args, **named), first)
