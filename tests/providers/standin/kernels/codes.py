"""Products of 8-bit codes: aiter/ops/gemm_op_a8w8.py."""

from __future__ import annotations

import torch
from torch import Tensor

from . import orders
from .machine import HALF, Fault, Machine, Unsupported, check, dense, function, shape_of


def _problem(m: Machine, XQ: Tensor, WQ: Tensor, dtype: torch.dtype) -> None:
    """Composable Kernel's IsSupportedArgument: reads of 16 codes of K, writes of 8 columns of N."""
    dense(Fault, XQ=XQ, WQ=WQ)
    check(Unsupported, dtype in HALF, f"Output {dtype} is currently not supported in gemm_a8w8")
    check(Fault, XQ.dtype == WQ.dtype, "both factors are read as one type")
    check(Unsupported, XQ.dtype in (torch.int8, m.fp8), f"no kernel for {XQ.dtype}")
    check(Fault, XQ.shape[1] == WQ.shape[1], "both factors have K columns")
    words = "device_gemm with the specified compilation parameters does not support this GEMM problem"
    check(Unsupported, XQ.shape[1] % 16 == WQ.shape[0] % 8 == 0, words)


def _product(XQ: Tensor, WQ: Tensor) -> Tensor:
    """fp32 of an exact sum."""
    return (XQ.double() @ WQ.double().t()).float()


def _plain(weights: Tensor) -> Tensor:
    """Of weights in tiles of 16 rows and 32 bytes."""
    return orders.read(weights, orders.weight_places(*weights.shape, 16 // weights.element_size()))


def _rowwise(m: Machine, XQ: Tensor, WQ: Tensor, x_scale: Tensor, w_scale: Tensor, splits: int = 0) -> Tensor:
    """fp32; scales are read one after another. Split K is added up in bf16."""
    dense(Fault, x_scale=x_scale, w_scale=w_scale)
    check(Fault, x_scale.dtype == w_scale.dtype == torch.float32, "scales are read as fp32")
    check(Fault, x_scale.numel() >= len(XQ) and w_scale.numel() >= len(WQ), "a scale a row and a column is read")
    x, w = x_scale.flatten()[: len(XQ), None], w_scale.flatten()[None, : len(WQ)]
    if not splits:
        return _product(XQ, WQ) * x * w
    parts = zip(XQ.tensor_split(2**splits, 1), WQ.tensor_split(2**splits, 1), strict=True)
    total = torch.zeros(len(XQ), len(WQ), dtype=torch.bfloat16)
    for a, b in parts:
        total += (_product(a, b) * x * w).bfloat16()
    return total.float()


@function
def gemm_a8w8_CK(
    m: Machine,
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    splitK: int | None,
) -> Tensor:
    """splitK None: from a table of tuned sizes, here always 3."""
    _problem(m, XQ, WQ, dtype)
    y = _rowwise(m, XQ, WQ, x_scale, w_scale, 3 if splitK is None else splitK)
    if bias is not None:
        dense(Fault, bias=bias)
        check(Fault, bias.dtype == dtype and bias.numel() == len(WQ), "the bias is read as the result's type")
        y = y + bias.float()
    return y.to(dtype)


@function
def gemm_a8w8_bpreshuffle(
    m: Machine,
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    check: bool = False,
) -> Tensor:
    """Tiles of 64 codes of K, of which three at least are in flight."""
    _only_fp8(m, WQ, bias)
    _problem(m, XQ, WQ, dtype)
    _whole_tiles(XQ.shape[1])
    return _rowwise(m, XQ, _plain(WQ), x_scale, w_scale).to(dtype)


def _only_fp8(m: Machine, WQ: Tensor, bias: Tensor | None) -> None:
    check(Unsupported, WQ.dtype == m.fp8, "gemm_a8w8_bpreshuffle only support fp8 now")
    check(Unsupported, bias is None, "gemm_a8w8_bpreshuffle does not support bias now")


def _whole_tiles(k: int) -> None:
    check(Unsupported, k >= 192 and k % 64 == 0, "does not support this GEMM problem")


def _blocks(m: Machine, XQ: Tensor, WQ: Tensor, x: Tensor, w_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x: fp32 [M, K/128] in the order of its shape."""
    dense(Fault, w_scale=w_scale)
    check(Fault, w_scale.dtype == torch.float32 and x.dtype == torch.float32, "scales are read as fp32")
    k, n = XQ.shape[1], WQ.shape[0]
    shape_of(Fault, "w_scale", w_scale, -(-n // 128), -(-k // 128))
    shape_of(Fault, "x_scale", x, len(XQ), -(-k // 128))
    a = XQ.float() * x[:, torch.arange(k) // 128]
    b = WQ.float() * w_scale[torch.arange(n)[:, None] // 128, torch.arange(k)[None] // 128]
    return (a @ b.t()).to(dtype)


@function
def gemm_a8w8_blockscale(
    m: Machine,
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype,
    isBpreshuffled: bool = False,
) -> Tensor:
    """x_scale is read row by row; with isBpreshuffled by gfx950's assembly, which takes large problems alone."""
    _problem(m, XQ, WQ, dtype)
    check(Unsupported, XQ.dtype == m.fp8, "no kernel for int8")
    if isBpreshuffled:
        large = m.arch == "gfx950" and len(XQ) >= 16 and XQ.shape[1] >= 512 and dtype == torch.bfloat16
        check(Unsupported, large, "asm kernel only support B preshuffle and m >= 16")
        return _blocks(m, XQ, _plain(WQ), x_scale, w_scale, dtype)
    dense(Fault, x_scale=x_scale)
    return _blocks(m, XQ, WQ, x_scale, w_scale, dtype)


@function
def gemm_a8w8_blockscale_bpreshuffle(
    m: Machine,
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """x_scale: the memory of [K/128, M], in the shape [M, K/128]."""
    _problem(m, XQ, WQ, dtype)
    check(Unsupported, XQ.dtype == m.fp8, "no kernel for int8")
    shape_of(Fault, "x_scale", x_scale, len(XQ), -(-XQ.shape[1] // 128))
    memory = x_scale.as_strided((x_scale.numel(),), (1,))
    by_column = memory.view(x_scale.shape[1], x_scale.shape[0])
    y = _blocks(m, XQ, _plain(WQ), by_column.t(), w_scale, dtype)
    return y if out is None else out.copy_(y)
