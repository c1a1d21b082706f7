"""aiter/ops/activation.py (HIP) and aiter/ops/triton/activation.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from . import numbers
from .machine import HALF, Abort, Fault, Machine, Unsupported, check, dense, function, shape_of


def _written(m: Machine, out: Tensor, input: Tensor, value: Tensor) -> None:
    wide = input.dtype == torch.float32
    check(Abort, input.dtype in HALF or (wide and m.since("0.1.9.post1")), f"no kernel for {input.dtype}")
    check(Fault, out.dtype == input.dtype, "out is written as input's type")
    dense(Fault, out=out, input=input)
    shape_of(Fault, "out", out, *input.shape[:-1], input.shape[-1] // 2)
    out.copy_(value)


def _parts(input: Tensor) -> tuple[Tensor, Tensor]:
    width = input.shape[-1] // 2
    return input[..., :width].float(), input[..., width:].float()


@function
def silu_and_mul(m: Machine, out: Tensor, input: Tensor, limit: float = 0.0) -> None:
    gate, up = _parts(input)
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    _written(m, out, input, silu(gate) * up)


@function
def gelu_and_mul(m: Machine, out: Tensor, input: Tensor) -> None:
    gate, up = _parts(input)
    _written(m, out, input, gelu(gate) * up)


@function
def gelu_tanh_and_mul(m: Machine, out: Tensor, input: Tensor) -> None:
    gate, up = _parts(input)
    _written(m, out, input, gelu(gate, approximate="tanh") * up)


@function
def act_mul_and_fp8_group_quant(
    m: Machine, x: Tensor, activation: str, group_size: int, dtype_quant: torch.dtype
) -> tuple[Tensor, Tensor]:
    acts = {"silu": silu, "gelu": gelu, "gelu_tanh": lambda t: gelu(t, approximate="tanh"), "relu": torch.relu}
    check(Unsupported, x.dim() == 2, "not enough values to unpack (expected 2)")
    check(Unsupported, activation in acts, f"no activation {activation}")
    check(Unsupported, group_size & (group_size - 1) == 0, "arange's range must be a power of 2")
    gate, up = _parts(x)
    return numbers.by_group(acts[activation](gate) * up, group_size, dtype_quant)
