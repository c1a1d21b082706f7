"""Linear layers of block-FP8 checkpoints (DeepSeek-V3's format, arXiv:2412.19437, section 3.3), in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aiter_ops.core.platforms import fp8_dtype
from aiter_ops.ops.layout import fnuz

BLOCK = 128


@cache
def _table(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype).float()


def decoded(codes: Tensor) -> Tensor:
    """FP8 codes as fp32. On the CPU by a table, which takes half the time of torch's conversion there."""
    if codes.device.type != "cpu":
        return codes.float()
    return _table(codes.dtype)[codes.view(torch.uint8).int()]


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    """weight [N, K] FP8 times scale [ceil(N/128), ceil(K/128)] of its 128×128 block, fp32 [N, K]."""
    n, k = weight.shape
    rows = scale.float().repeat_interleave(BLOCK, 0)[:n]
    values = F.pad(decoded(weight), (0, -k % BLOCK)).unflatten(1, (-1, BLOCK))
    return (values * rows.unsqueeze(-1)).flatten(1)[:, :k]


def in_format(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An e4m3fn weight and its scales in `dtype`, with the same product.

    `aiter_ops.to_fp8_fnuz` says how the codes and the scale change.
    """
    return (weight, scale) if dtype == weight.dtype else fnuz(weight, scale)


class BlockFp8Linear(nn.Module):
    """y = x · Wᵀ + bias, W in FP8 with one fp32 scale a block, x quantised to FP8 per row and 128 columns first.

    weight: [N, K] FP8. weight_scale_inv: [ceil(N/128), ceil(K/128)] fp32. K is a multiple of 128.
    As it stands this is the stock layer: plain formulas that share nothing with the ops. `kernelize` puts the op in
    the place of `quantise`. The product accumulates in fp32.
    """

    group = BLOCK

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        weight, scale = in_format(weight, scale.float(), fp8_dtype())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., K] -> codes [..., K] and scale [..., K/128] fp32: scale = largest of the group / largest code."""
        groups = x.float().unflatten(-1, (-1, self.group))
        top = torch.finfo(self.weight.dtype).max
        scale = groups.abs().amax(-1, keepdim=True) / top
        scale = torch.where(scale == 0, torch.finfo(torch.float32).tiny, scale)
        return (groups / scale).clamp(-top, top).to(self.weight.dtype).flatten(-2), scale.squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self.quantise(x)
        rows = (decoded(codes).unflatten(-1, (-1, self.group)) * scale.unsqueeze(-1)).flatten(-2)
        y = F.linear(rows, dequantised(self.weight, self.weight_scale_inv)).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BlockFp8Linear:
        """Moves go to every tensor; a change of dtype does not touch the codes and scales."""
        fixed = {n: self._parameters[n].data for n in ("weight", "weight_scale_inv")}  # type: ignore[union-attr]
        super()._apply(fn, recurse)
        for name, before in fixed.items():
            after = self._parameters[name]
            if after is not None and after.dtype != before.dtype:
                self._parameters[name] = nn.Parameter(before.to(after.device), requires_grad=False)
        return self

    def extra_repr(self) -> str:
        n, k = self.weight.shape
        return f"in_features={k}, out_features={n}, bias={self.bias is not None}, {self.weight.dtype}"


def install(model: nn.Module, stored: dict[str, tuple[Tensor, Tensor]]) -> tuple[list[str], list[str]]:
    """Put a `BlockFp8Linear` where `model` has the nn.Linear of a stored (weight, scale).

    stored: module path -> FP8 weight and scale. Returns the paths put in place, and those left dequantised.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    done: list[str] = []
    for path, (weight, scale) in stored.items():
        linear = modules.get(path)
        if type(linear) is not nn.Linear or linear.weight.shape != weight.shape or weight.shape[1] % BLOCK:
            continue
        parent, _, name = path.rpartition(".")
        device = linear.weight.device
        setattr(modules[parent], name, BlockFp8Linear(weight.to(device), scale.to(device), linear.bias))
        done.append(path)
    return done, [p for p in stored if p not in set(done)]
