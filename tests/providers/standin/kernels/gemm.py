"""16-bit products by Triton, plain and batched: aiter/ops/triton/gemm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from . import numbers
from .machine import HALF, Fault, Machine, NotPlayed, Unsupported, check, function, garbage, shape_of

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda t: gelu(t, approximate="tanh"),
    "silu": silu,
    "silu_exp2": silu,
    "relu": torch.relu,
}


def _kept(y: Tensor, into: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """fp32 y in the caller's tensor, or in a new one of `dtype`."""
    if into is None:
        return garbage(*y.shape, dtype=dtype).copy_(y)
    shape_of(Unsupported, "y", into, *y.shape)
    return into.copy_(y)


@function
def gemm_a16w16(
    m: Machine,
    x: Tensor,
    w: Tensor,
    dtype: torch.dtype,
    y: Tensor | None,
    config: object,
    activation: str | None,
    bias: Tensor | None = None,
    skip_reduce: bool = False,
    kernel_type: str = "bandwidth_bound",
    backend: str | None = None,
) -> Tensor:
    check(Unsupported, x.dtype in HALF and w.dtype == x.dtype, "x and w have one 16-bit type")
    check(Unsupported, x.dim() == w.dim() == 2 and x.shape[1] == w.shape[1], "x [M, K], w [N, K]")
    check(Unsupported, backend in (None, "triton"), f"no backend {backend} here")
    check(NotPlayed, config is None and not skip_reduce, "other configurations and parts of sums are not played")
    product = x.float() @ w.float().t()
    if bias is not None:
        shape_of(Unsupported, "bias", bias, len(w))
        product = product + bias.float()
    return _kept(product if activation is None else ACTIVATIONS[activation](product), y, dtype)


def _batch(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bmk,bnk->bmn", a, b)


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Rounded to the bias's type before it is added."""
    if bias is None:
        return y
    shape_of(Fault, "bias", bias, y.shape[0], 1, y.shape[2])
    return (y.to(bias.dtype) + bias).float()


@function
def batched_gemm_bf16(
    m: Machine,
    XQ: Tensor,
    WQ: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    splitK: int | None,
    YQ: Tensor | None,
    config: object,
    kernel_type: str = "bandwidth_bound",
    backend: str | None = None,
) -> Tensor:
    check(Unsupported, XQ.dtype == WQ.dtype and XQ.dtype in HALF, "both have one 16-bit type")
    check(Unsupported, XQ.shape[0] == WQ.shape[0] and XQ.shape[2] == WQ.shape[2], "Incompatible dimensions")
    check(Unsupported, dtype in HALF, f"Output {dtype} is currently not supported")
    check(Unsupported, splitK is None, "there isn't any support for splitK on Triton")
    return _kept(_with_bias(_batch(XQ.float(), WQ.float()), bias), YQ, dtype)


@function
def batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant(
    m: Machine,
    X: Tensor,
    WQ: Tensor,
    w_scale: Tensor,
    group_size: int,
    bias: Tensor | None,
    dtype: torch.dtype,
    splitK: int | None,
    YQ: Tensor | None,
    transpose_bm: bool,
    config: object,
    transpose_bm_in: bool = False,
) -> Tensor:
    """X is quantised in groups of `group_size` of K, read with its strides; an empty M is a fault."""
    x = X.transpose(0, 1) if transpose_bm_in else X
    check(Unsupported, x.shape[0] == WQ.shape[0] and x.shape[2] == WQ.shape[2], "Incompatible dimensions")
    check(Unsupported, group_size & (group_size - 1) == 0, "group_size mush be power of 2")
    check(Unsupported, dtype in HALF, f"Output {dtype} is currently not supported in batched_gemm_a8w8")
    check(Unsupported, splitK is None, "there isn't any support for splitK on Triton")
    check(Unsupported, WQ.dtype in (m.fp8, torch.int8), f"the matrix instructions take no {WQ.dtype}")
    check(Fault, x.shape[1] > 0 and w_scale.dtype == torch.float32, "an empty M")
    flat = torch.nn.functional.pad(x.float(), (0, -x.shape[2] % group_size)).flatten(0, 1)
    codes, scale = numbers.by_group(flat, group_size, WQ.dtype)
    values = (codes.float().unflatten(1, (-1, group_size)) * scale[..., None]).flatten(1)[:, : x.shape[2]]
    y = _with_bias(_batch(values.view(x.shape), WQ.float() * w_scale.view(-1)[0]), bias)
    return _kept(y.transpose(0, 1) if transpose_bm else y, YQ, dtype)
