"""vLLM's Triton kernels with its tuned tiles for the H200, cut out of its sources; the steps between are its ops."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import experts
from .common import GROUP_AMAX_FLOOR, dtype_range, need
from .cut_out import functions_of
from .experts import BLOCK, Experts, in_order
from .registry import Call, Kwargs, peer
from .torch_gemm import no_bias, plain_layout, product_dtype
from .vllm_triton_attention import load_vllm_attention

FUSED_MOE = "model_executor/layers/fused_moe"
LINEAR = "model_executor/layers/quantization/utils"

SOURCES: dict[str, Any] = {}
"""The functions, once loaded, and ``configs``: the folder of the linear layers' tiles."""


def load_vllm_triton(folders: list[Path]) -> None:
    """Raises ImportError where none of `folders` holds vLLM's sources. Those of experts and of attention are apart."""
    attention = [folder for folder in folders if load_vllm_attention(folder)]
    found = next((f for f in folders if (f / FUSED_MOE / "fused_moe.py").is_file()), None)
    if found is None:
        if attention:
            return
        raise ImportError("not found")
    import triton
    import triton.language as tl

    given = {"torch": torch, "triton": triton, "tl": tl, "Any": Any}
    given |= {"current_platform": SimpleNamespace(is_rocm=lambda: False)}
    given |= {"envs": SimpleNamespace(VLLM_BATCH_INVARIANT=False)}
    names = ("write_zeros_to_output", "fused_moe_kernel", "invoke_fused_moe_triton_kernel", "get_default_config")
    SOURCES.update(functions_of(found / FUSED_MOE / "fused_moe.py", names, given))
    linear = functions_of(found / LINEAR / "fp8_utils.py", ("_w8a8_triton_block_scaled_mm",), given)
    SOURCES.update(linear, configs=found / LINEAR / "configs")
    experts.TILES.update(folder=found / FUSED_MOE / "configs", default=SOURCES["get_default_config"])


def quantise(x: torch.Tensor, codes: torch.Tensor | None, scale: torch.Tensor | None) -> Call | None:
    if codes is None:
        return None
    numbers = (BLOCK, GROUP_AMAX_FLOOR, *dtype_range(codes.dtype), False, False, False)
    return functools.partial(torch.ops._C.per_token_group_fp8_quant.default, x, codes, scale, *numbers)


def sort(e: Experts) -> tuple[Call | None, tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]]:
    """How slots find their experts: few of them as they are, one a block, others sorted."""
    block = e.config["BLOCK_SIZE_M"]
    if e.ids.numel() * 4 <= e.experts:
        count = torch.full((1,), e.ids.numel() * block, dtype=torch.int32, device=e.ids.device)
        return None, (None, e.ids.view(-1), count)
    into = e.blocks()
    op = torch.ops._moe_C.moe_align_block_size.default
    return functools.partial(op, e.ids, e.experts, block, *into, None), into


@peer("fused_moe", "vllm_triton")
def vllm_fused_moe(kw: Kwargs) -> Call:
    e = Experts(kw)
    aligning, slots = sort(e)
    first = product(e, e.x, e.x_codes, e.x_scale, e.w1, e.w1_scale, e.both, slots, False)
    second = product(e, e.gated, e.gated_codes, e.gated_scale, e.w2, e.w2_scale, e.each, slots, True)
    ops = torch.ops._C, torch.ops._moe_C

    def last() -> torch.Tensor:
        ops[1].moe_sum.default(e.each, e.out)
        return e.out

    return in_order(
        quantise(e.x, e.x_codes, e.x_scale),
        aligning,
        first,
        functools.partial(ops[0].silu_and_mul.default, e.gated, e.both.view(-1, 2 * e.inner)),
        quantise(e.gated, e.gated_codes, e.gated_scale),
        second,
        last,
    )


def product(
    e: Experts,
    x: torch.Tensor,
    codes: torch.Tensor | None,
    scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor | None,
    out: torch.Tensor,
    slots: tuple[torch.Tensor | None, torch.Tensor, torch.Tensor],
    weighted: bool,
) -> Call:
    """One of the two grouped products; the second takes one row a slot and multiplies it by the slot's weight."""
    import triton.language as tl

    kinds = (e.coded, False, False, False, False)
    shape = [BLOCK, BLOCK] if e.coded else None
    args = (codes if codes is not None else x, w, out, scale, w_scale, e.weights, *slots, weighted)
    return functools.partial(
        SOURCES["invoke_fused_moe_triton_kernel"],
        *args,
        1 if weighted else e.k,
        e.config,
        tl.bfloat16 if e.x.dtype == torch.bfloat16 else tl.float16,
        *kinds,
        block_shape=shape,
    )


@peer("gemm_a8w8_blockscale", "vllm_triton")
def vllm_block_gemm(kw: Kwargs) -> Call:
    no_bias(kw)
    plain_layout(kw)
    need(list(kw.get("block", [BLOCK, BLOCK])) == [BLOCK, BLOCK], "blocks of 128 × 128 only")
    need("configs" in SOURCES, "vLLM's sources of it were not found")
    a, b, a_scale, b_scale = kw["a"], kw["b"], kw["a_scale"], kw["b_scale"]
    (m, k), n = a.shape, b.shape[0]
    name = f"N={n},K={k},device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[{BLOCK},{BLOCK}].json"
    need((SOURCES["configs"] / name).is_file(), "no tuned tiles for this shape")
    config = experts.nearest(SOURCES["configs"] / name, m)
    grid = (-(-m // config["BLOCK_SIZE_M"]) * -(-n // config["BLOCK_SIZE_N"]),)
    strides = (*a.stride(), *reversed(b.stride()), n, 1, *a_scale.stride(), *reversed(b_scale.stride()))
    kernel = SOURCES["_w8a8_triton_block_scaled_mm"]

    def call() -> torch.Tensor:
        y = torch.empty(m, n, dtype=product_dtype(kw), device=a.device)
        kernel[grid](a, b, y, a_scale, b_scale, m, n, k, BLOCK, BLOCK, *strides, **config)
        return y

    return call
