"""Linear layers and experts of block-FP8 checkpoints (DeepSeek-V3's format, arXiv:2412.19437, section 3.3).

As they stand these are the stock layers: plain PyTorch that shares nothing with the ops. `kernelize` puts the ops in
place of their forwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aiter_ops.core.platforms import fp8_dtype

BLOCK = 128
M = TypeVar("M", bound=nn.Module)


@cache
def _table(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype).float()


def decoded(codes: Tensor) -> Tensor:
    """FP8 codes as fp32. On the CPU by a table, which takes a quarter of the time of torch's conversion there."""
    if codes.device.type != "cpu":
        return codes.float()
    flat = codes.contiguous().view(torch.uint8).int().flatten()
    return _table(codes.dtype).index_select(0, flat).view(codes.shape)


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [N, K] FP8 times scale [ceil(N/128), ceil(K/128)] of its 128×128 block, fp32 [N, K]."""
    n, k = weight.shape
    rows = scale.float().repeat_interleave(BLOCK, 0)[:n]
    values = F.pad(decoded(weight), (0, -k % BLOCK)).unflatten(1, (-1, BLOCK))
    return (values * rows.unsqueeze(-1)).flatten(1)[:, :k]


def in_format(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An e4m3fn weight and its scales in `dtype`, with the same product.

    e4m3fnuz reads every code as half of what e4m3fn does, has its NaN at 0x80 (e4m3fn's -0) and none at 0x7F and 0xFF
    (ONNX's table of FP8 formats): the scale doubles, -0 becomes 0, NaN stays NaN.
    """
    if dtype == weight.dtype:
        return weight, scale
    codes = weight.view(torch.uint8)
    nan = (codes & 0x7F) == 0x7F
    codes = torch.where(codes == 0x80, 0, codes)
    return torch.where(nan, 0x80, codes).to(torch.uint8).view(dtype), scale * 2


def through_codes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 [..., K] of x quantised per row and 128 columns, and back: scale = largest of the group / largest code."""
    groups = x.float().unflatten(-1, (-1, BLOCK))
    top = torch.finfo(dtype).max
    scale = groups.abs().amax(-1, keepdim=True) / top
    scale = torch.where(scale == 0, torch.finfo(torch.float32).tiny, scale)
    return (decoded((groups / scale).clamp(-top, top).to(dtype)) * scale).flatten(-2)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class _Coded(nn.Module):
    """Holds FP8 codes and fp32 scales as parameters, which a change of dtype does not touch."""

    def keep(self, name: str, codes: Tensor, scale: Tensor) -> None:
        """`codes` as parameter `name` in this machine's FP8, and its scale beside it."""
        codes, scale = in_format(codes, scale.float(), fp8_dtype())
        self.register_parameter(name, nn.Parameter(codes, requires_grad=False))
        self.register_parameter(f"{name}_scale_inv", nn.Parameter(scale, requires_grad=False))

    def _apply(self: M, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M:
        fixed = {n: p.data for n, p in self._parameters.items() if p is not None and n != "bias"}
        super()._apply(fn, recurse)  # type: ignore[misc]
        for name, before in fixed.items():
            after = self._parameters[name]
            if after is not None and after.dtype != before.dtype:
                self._parameters[name] = nn.Parameter(before.to(after.device), requires_grad=False)
        return self


class BlockFp8Linear(_Coded):
    """y = x · Wᵀ + bias, W in FP8 with one fp32 scale a block, x quantised to FP8 per row and 128 columns first.

    weight: [N, K] FP8. weight_scale_inv: [ceil(N/128), ceil(K/128)] fp32. K is a multiple of 128. The product
    accumulates in fp32.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.keep("weight", weight, scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantised(self.weight, self.weight_scale_inv)
        y = F.linear(through_codes(x, self.weight.dtype), weight).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        n, k = self.weight.shape
        return f"in_features={k}, out_features={n}, bias={self.bias is not None}, {self.weight.dtype}"


class BlockFp8Experts(_Coded):
    """Gated MLPs in FP8: Σ_j weights[t, j] · down(act(gate) · up) of expert ids[t, j], both products as `BlockFp8Linear`.

    gate_up_proj: [E, 2·I, D] FP8, gate's rows first, scales [E, 2·I/128, D/128]; down_proj: [E, D, I], scales
    [E, D/128, I/128]. D and I are multiples of 128. activation: silu, gelu or gelu_tanh. Every expert's result is
    rounded to x's dtype, their sum is in fp32.
    """

    def __init__(self, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor], activation: str) -> None:
        super().__init__()
        self.keep("gate_up_proj", *gate_up)
        self.keep("down_proj", *down)
        self.activation = activation

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        x, dtype = through_codes(hidden_states, self.gate_up_proj.dtype), hidden_states.dtype
        total = torch.zeros_like(x)
        for e in top_k_index.unique().tolist():
            token, choice = (top_k_index == e).nonzero(as_tuple=True)
            first = dequantised(self.gate_up_proj[e], self.gate_up_proj_scale_inv[e])
            second = dequantised(self.down_proj[e], self.down_proj_scale_inv[e])
            gate, up = F.linear(x[token], first).to(dtype).chunk(2, -1)
            h = through_codes(GATES[self.activation](gate) * up, self.down_proj.dtype)
            y = F.linear(h, second).to(dtype) * top_k_weights[token, choice, None]
            total.index_add_(0, token, y.to(dtype).float())
        return total.to(dtype)

    def extra_repr(self) -> str:
        e, n, k = self.gate_up_proj.shape
        return f"experts={e}, D={k}, I={n // 2}, {self.gate_up_proj.dtype}"
