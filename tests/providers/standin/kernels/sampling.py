"""aiter/ops/sample.py: a block of 1024 threads reads 16 columns each at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .machine import Abort, Fault, Machine, check, dense, function, shape_of


@function
def greedy_sample(m: Machine, out: Tensor, input: Tensor) -> None:
    """The first of the largest; comparisons pass over NaN, and begin at the least fp32."""
    check(Abort, out.dtype == torch.int32, "out is int32")
    shape_of(Fault, "out", out, len(input))
    dense(Fault, input=input, out=out)
    check(Fault, input.shape[1] >= 16 * 1024, "threads without columns compare what they have not loaded")
    check(Fault, input.shape[1] % 16 == 0, "zeros beyond the last column are compared too")
    x = torch.where(input.isnan(), -torch.inf, input.float()).clamp(min=torch.finfo(torch.float32).min)
    out.copy_((x == x.amax(-1, keepdim=True)).int().argmax(-1))
