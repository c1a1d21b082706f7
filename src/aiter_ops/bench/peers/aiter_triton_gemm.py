"""AITER's own Triton products, each with the best of several tiles for this GPU."""

from __future__ import annotations

import functools
from typing import Any

import torch

from .aiter_triton import aiter
from .common import filling, need
from .registry import Call, Kwargs, peer
from .torch_gemm import no_bias, plain_layout, product_dtype
from .tuned import gemm_tiles, quickest, shape_key


def tried(name: str, kw: Kwargs, op: Any, *args: Any, step: int = 128, whole: bool = True, **named: Any) -> Call:
    """The op with the quickest tiles. step: columns of K a tile takes. whole: whether it wants the columns of a part."""
    a, b = (kw[n] for n in (("a", "b") if "a" in kw else ("x", "w")))
    rows, depth = a.shape[-2], a.shape[-1]

    def make(config: dict[str, Any]) -> Call:
        parts = config["NUM_KSPLIT"]
        sized = config | ({"SPLITK_BLOCK_SIZE": -(-depth // parts)} if whole else {})
        return lambda: op(*args, **named, config=dict(sized))

    return quickest(shape_key(name, a, b), gemm_tiles(rows, step), make)


@peer("gemm_a16w16", "aiter_triton")
def aiter_gemm_a16w16(kw: Kwargs) -> Call:
    no_bias(kw)
    op = aiter("gemm.basic.gemm_a16w16", "gemm_a16w16")
    return tried("gemm_a16w16", kw, op, kw["a"], kw["b"], step=64, dtype=kw.get("out_dtype") or kw["a"].dtype)


@peer("gemm_a8w8", "aiter_triton")
def aiter_gemm_a8w8(kw: Kwargs) -> Call:
    plain_layout(kw)
    args = (kw["a"], kw["b"], kw["a_scale"], kw["b_scale"].reshape(1, -1), kw.get("bias"), product_dtype(kw))
    return tried("gemm_a8w8", kw, aiter("gemm.basic.gemm_a8w8", "gemm_a8w8"), *args)


@peer("gemm_a8w8_blockscale", "aiter_triton")
def aiter_gemm_a8w8_blockscale(kw: Kwargs) -> Call:
    no_bias(kw)
    plain_layout(kw)
    op = aiter("gemm.basic.gemm_a8w8_blockscale", "gemm_a8w8_blockscale")
    args = (kw["a"], kw["b"], kw["a_scale"], kw["b_scale"], product_dtype(kw))
    return tried("gemm_a8w8_blockscale", kw, op, *args)


@peer("bmm_a16w16", "aiter_triton")
def aiter_bmm_a16w16(kw: Kwargs) -> Call:
    """Into the memory of the result, whose heads lie side by side where ``transpose_bm`` asks for it."""
    no_bias(kw)
    op = aiter("gemm.batched.batched_gemm_bf16", "batched_gemm_bf16")
    x, w, turned = kw["x"], kw["w"], bool(kw.get("transpose_bm"))
    (batch, m, _), n, dtype = x.shape, w.shape[1], product_dtype(kw)
    y = x.new_empty((m, batch, n) if turned else (batch, m, n), dtype=dtype)
    into = y.transpose(0, 1) if turned else y
    single = {"NUM_KSPLIT": 1, "SPLITK_BLOCK_SIZE": x.shape[2]}
    rows = [t | single for t in gemm_tiles(m) if t["NUM_KSPLIT"] in (1, 2)]
    for row in rows:
        del row["matrix_instr_nonkdim"]  # the kernel leaves it to the compiler, and NVIDIA's has none

    def make(config: dict[str, Any]) -> Call:
        def call() -> torch.Tensor:
            op(x, w, dtype=dtype, YQ=into, config=dict(config))
            return y

        return call

    return quickest(shape_key("bmm_a16w16", x, w), rows, make)


@peer("bmm_a8w8_group_prequant", "aiter_triton")
def aiter_bmm_a8w8(kw: Kwargs) -> Call:
    no_bias(kw)
    module = "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant"
    op = aiter(f"gemm.batched.{module}", module)
    args = (kw["x"], kw["w"], kw["w_scale"], kw["group_size"])
    named = {"dtype": product_dtype(kw), "transpose_bm": bool(kw.get("transpose_bm"))}
    rows = [t | {"NUM_KSPLIT": 1} for t in gemm_tiles(kw["x"].shape[1]) if t["NUM_KSPLIT"] in (1, 2)]
    configs = [{n: v for n, v in t.items() if n not in ("NUM_KSPLIT", "BLOCK_SIZE_K")} for t in rows]

    def make(config: dict[str, Any]) -> Call:
        return lambda: op(*args, **named, config=dict(config))

    return quickest(shape_key("bmm_a8w8", kw["x"], kw["w"]), configs, make)


@peer("gemm_a8wfp4", "aiter_triton")
def aiter_gemm_a8wfp4(kw: Kwargs) -> Call:
    op = aiter("gemm.basic.gemm_a8wfp4", "gemm_a8wfp4")
    a, b = kw["a"], kw["b"]
    y = torch.empty(a.shape[0], b.shape[0], dtype=product_dtype(kw), device=a.device)

    single = {"NUM_KSPLIT": 1, "SPLITK_BLOCK_SIZE": 2 * a.shape[1]}

    def make(config: dict[str, Any]) -> Call:
        return filling(y, functools.partial(op, config=config | single), a, b, y, kw["a_scale"], kw["b_scale"], y.dtype)

    return quickest(shape_key("gemm_a8wfp4", a, b), gemm_tiles(a.shape[0]), make)


@peer("gemm_a4w4", "aiter_triton")
def aiter_gemm_a4w4(kw: Kwargs) -> Call:
    no_bias(kw)
    need(kw.get("layout", "plain") == "plain", "plain weights only")
    op = aiter("gemm.basic.gemm_afp4wfp4", "gemm_afp4wfp4")
    args = (kw["a"], kw["b"], kw["a_scale"], kw["b_scale"], product_dtype(kw))
    return tried("gemm_a4w4", kw, op, *args, step=256, whole=False)
