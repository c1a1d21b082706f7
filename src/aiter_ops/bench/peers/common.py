"""Pieces of the calls: buffers as libraries want them, and reasons for what they do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .registry import Call, Factory, Kwargs, Unsupported

FP8 = torch.float8_e4m3fn
GROUP_AMAX_FLOOR = 1e-10
"""The least group maximum vLLM and SGLang divide by."""

Quantised = tuple[torch.Tensor, torch.Tensor, Call]
"""codes, scale, and the call that fills both"""


def filling(result: Any, op: Any, *args: Any) -> Call:
    """A call of an operator that writes into ``result``."""

    def call() -> Any:
        op(*args)
        return result

    return call


def in_turn(result: Any, *steps: Call) -> Call:
    def call() -> Any:
        for step in steps:
            step()
        return result

    return call


def need(condition: bool, reason: str) -> None:
    if not condition:
        raise Unsupported(reason)


def plain_weight(kw: Kwargs, name: str = "weight", source: str = "x") -> torch.Tensor:
    """The weight, all ones where it is absent; refuses a weight offset."""
    need(not kw.get("weight_offset"), "no weight offset")
    return any_weight(kw, name, source)


def any_weight(kw: Kwargs, name: str = "weight", source: str = "x") -> torch.Tensor:
    x, weight = kw[source], kw.get(name)
    return torch.ones(x.shape[-1], dtype=x.dtype, device=x.device) if weight is None else weight


def output_dtype(kw: Kwargs) -> torch.dtype:
    return kw.get("dtype") or FP8


def fp8_only(kw: Kwargs) -> torch.dtype:
    need(output_dtype(kw) == FP8, "float8_e4m3fn only")
    return FP8


def dtype_range(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return float(info.min), float(info.max)


def like(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


def half_width(x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=dtype or x.dtype, device=x.device)


def token_scale(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.numel() // x.shape[-1], 1, dtype=torch.float32, device=x.device)


def group_size(kw: Kwargs) -> int:
    return int(kw.get("group_size") or 128)


def layout(kw: Kwargs) -> str:
    return kw.get("scale_layout") or "row"


def group_scale(kw: Kwargs, q: torch.Tensor) -> torch.Tensor:
    """A float32 scale [tokens, groups] for ``q`` in the layout asked for."""
    tokens, groups = q.numel() // q.shape[-1], q.shape[-1] // group_size(kw)
    if layout(kw) == "row":
        return torch.empty(tokens, groups, dtype=torch.float32, device=q.device)
    step = tokens if layout(kw) == "col" else -(-tokens // 4) * 4
    return torch.empty_strided((tokens, groups), (1, step), dtype=torch.float32, device=q.device)


def no_ue8m0(kw: Kwargs) -> None:
    need(not kw.get("ue8m0"), "no power-of-two scales")


def scale_bound(kw: Kwargs) -> torch.Tensor | None:
    bound = kw.get("scale_upper_bound")
    if bound is None or isinstance(bound, torch.Tensor):
        return bound
    return torch.tensor([float(bound)], dtype=torch.float32, device=kw["x"].device)


def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = x.chunk(2, dim=-1)
    return gate, up


def dual_norm(kw: Kwargs, single: Factory) -> Call:
    first = single({"x": kw["q"], "weight": kw.get("q_weight"), "eps": kw["q_eps"]})
    second = single({"x": kw["kv"], "weight": kw.get("kv_weight"), "eps": kw["kv_eps"]})
    return lambda: (first(), second())


def layer_norm_bias(kw: Kwargs) -> torch.Tensor:
    bias = kw.get("bias")
    return torch.zeros_like(any_weight(kw)) if bias is None else bias


def no_limit(kw: Kwargs) -> None:
    need(not kw.get("limit"), "no clamp")


def quantised(kw: Kwargs, build: Callable[[Kwargs, torch.Tensor], Quantised]) -> Call:
    q, scale, step = build(kw, kw["x"])
    return in_turn((q, scale), step)
