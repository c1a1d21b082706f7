"""Hypothesis strategies: calls of any op with drawn shapes, strides, dtypes and values."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from aiter_ops import Op

from . import calls

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
STRIDES = ("contiguous", "transposed", "reversed", "sliced", "stepped", "expanded", "one element apart")
SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 3e38, -6e4, 448.0, 1.0)


def strided(t: torch.Tensor, how: str) -> torch.Tensor:
    """The values of `t` in another arrangement in memory (`expanded` repeats the first row instead)."""
    if how == "transposed" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "reversed":
        order = tuple(range(t.dim()))[::-1]
        return t.permute(order).contiguous().permute(order)
    if how == "sliced":
        wide = t.new_zeros(*t.shape[:-1], t.shape[-1] + 9)
        return wide[..., 3 : 3 + t.shape[-1]].copy_(t)
    if how == "stepped":
        return t.new_zeros(*t.shape[:-1], 3 * t.shape[-1])[..., 1::3].copy_(t)
    if how == "expanded" and t.dim() > 1 and t.shape[0]:
        return t[:1].clone().expand(t.shape)
    if how == "one element apart":
        return t.new_zeros(t.numel() + 1)[1:].view(t.shape).copy_(t)
    return t.clone()


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, wild: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    t = torch.randn(shape, generator=generator) * draw(st.sampled_from((1.0, 1e-3, 20.0, 1e4) if wild else (1.0,)))
    if wild and t.numel():
        for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=3)):
            t.view(-1)[draw(st.integers(0, t.numel() - 1))] = value
    return strided(t.to(dtype), draw(st.sampled_from(STRIDES)))


@st.composite
def arguments(draw: st.DrawFn, op: Op, valid: bool = False) -> dict[str, Any]:
    """Arguments by name. `valid`: they are accepted; otherwise widths, groups and dtypes may not fit."""
    lead = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    dtype = draw(st.sampled_from(FLOATS if valid else (*FLOATS, *FLOATS, torch.float64, torch.int32)))
    width = draw(st.sampled_from((32, 64, 96, 128, 256) if valid else (0, 1, 2, 7, 32, 33, 64, 96, 130, 256)))
    wild = draw(st.booleans())
    rows: dict[str, torch.Tensor] = {}
    for name in calls.row_names(op):
        own = draw(st.sampled_from((32, 48))) if name == "kv" else width
        rows[name] = draw(tensors((*lead, own), dtype, wild))
    values: dict[str, Any] = {}
    for param in op.signature.params:
        name = param.name
        if name in calls.VECTORS:
            size = rows[calls.vector_of(name)].shape[-1]
            vector = draw(tensors((size,), draw(st.sampled_from((*FLOATS, dtype)[: 3 + (not valid)])), False))
            values[name] = draw(st.sampled_from((vector, None))) if param.optional else vector
        elif name == "scale_upper_bound":
            values[name] = draw(st.sampled_from((None, torch.tensor([0.7]), torch.tensor(1e9))))
        elif name == "scale":
            values[name] = torch.tensor(draw(st.sampled_from((1e-3, 0.5, 100.0))))
        elif name == "dtype":
            fp8_only = "group" in op.name or "rms_norm_static" in op.name
            values[name] = draw(st.sampled_from((None, *FP8) if fp8_only else (None, *FP8, torch.int8)))
        elif name == "group_size":
            values[name] = draw(st.sampled_from((1, 2, 8, 16) if valid else (1, 2, 7, 16, 32, 64, 0)))
        elif name == "pad_to":
            values[name] = draw(st.sampled_from((1, 3, 64, 100)))
        elif name == "limit" and op.name == "silu_and_mul":
            values[name] = draw(st.sampled_from((None, 0.5, 7.0)))
        elif param.choices:
            values[name] = draw(st.sampled_from(param.choices))
        elif param.type == "bool":
            values[name] = draw(st.booleans())
        elif name == "weight_offset":
            values[name] = draw(st.sampled_from((0.0, 1.0)))
    return calls.build(op, rows, **values)


@st.composite
def dequant_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Codes of each format with scales of the shapes and strides that the quantisers give."""
    lead = tuple(draw(st.lists(st.integers(0, 4), max_size=2)))
    codes = draw(st.sampled_from((*FP8, torch.int8, torch.uint8)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    raw = torch.randint(0, 256, (*lead, draw(st.sampled_from((1, 5, 32, 48)))), generator=generator, dtype=torch.uint8)
    q = strided(raw, draw(st.sampled_from(STRIDES))).view(codes)
    columns = raw.shape[-1] * (2 if codes == torch.uint8 else 1)
    group = draw(st.sampled_from((1, 5, 16, 32)))
    block_rows = draw(st.sampled_from((1, 2, 3)))
    shape = (*lead[:-1], *[-(-n // block_rows) for n in lead[-1:]], -(-columns // group))
    if draw(st.booleans()):
        scale = torch.rand(shape, generator=generator)
    else:
        scale = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    scale = strided(scale, draw(st.sampled_from(STRIDES)))
    out_dtype = draw(st.sampled_from((None, *FLOATS)))
    return {"q": q, "scale": scale, "out_dtype": out_dtype, "block_rows": block_rows, "group_size": group}
