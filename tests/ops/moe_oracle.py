"""`fused_moe` by its definition: one token, one choice, one output at a time, in NumPy float64, formats by their bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from . import oracles as o

ERF = np.vectorize(math.erf)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gate(g: np.ndarray, u: np.ndarray, activation: str, limit: float | None, beta: float, linear: float) -> np.ndarray:
    if activation == "situv2":
        return beta * np.tanh(g / beta) * sigmoid(g) * linear * np.tanh(u / linear)
    if activation == "swiglu_oai" and limit is None:
        limit = 7.0
    if limit is not None:
        g, u = np.minimum(g, limit), np.clip(u, -limit, limit)
    if activation == "swiglu_oai":
        return g * sigmoid(1.702 * g) * (u + 1)
    act = {
        "silu": lambda v: v * sigmoid(v),
        "gelu": lambda v: 0.5 * v * (1 + ERF(v / math.sqrt(2))),
        "gelu_tanh": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    }[activation]
    return act(g) * u


def in_order(w: torch.Tensor, turns: bool = False) -> torch.Tensor:
    """A weight of layout ``shuffled_16x16`` in its own order, element by element: 16 rows by 16 bytes lie together.

    turns: 16 rows of the gate, which are the first half, are followed by those 16 of up.
    """
    rows, columns = w.shape
    piece = 16 // w.element_size()
    n, k = np.indices((rows, columns))
    if turns:
        up, own = np.divmod(n, rows // 2)
        n = own // 16 * 32 + up * 16 + own % 16
    at = (n // 16) * 16 * columns + (k // piece) * 16 * piece + (n % 16) * piece + k % piece
    bits = w.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[w.element_size()])
    return bits.reshape(-1)[torch.from_numpy(at)].view(w.dtype)


def values(w: torch.Tensor, scale: torch.Tensor | None, quant: str) -> np.ndarray:
    """float64 values of one expert's weight."""
    if scale is None:
        return o.f64(w)
    if w.dtype == torch.uint8:
        raw = w.numpy()
        table = np.concatenate([o.E2M1, -o.E2M1])
        pairs = np.stack([table[raw & 15], table[raw >> 4]], -1).reshape(*raw.shape[:-1], -1)
        return pairs * np.repeat(np.ldexp(1.0, scale.numpy().astype(int) - 127), 32, -1)
    table = np.arange(256).astype(np.uint8).view(np.int8) if w.dtype == torch.int8 else o.fp8_table(w.dtype)
    code = table[w.contiguous().view(torch.uint8).numpy()].astype(np.float64)
    s = o.f64(scale)
    if quant == "per_tensor":
        return code * s.item()
    if quant == "per_token":
        return code * s.reshape(-1, 1)
    rows, columns = np.indices(code.shape)
    return code * s[rows // 128, columns // 128]


def coded(x: np.ndarray, quant: str, dtype: torch.dtype, static: torch.Tensor | None, peak: float) -> np.ndarray:
    """One row as the product sees it. peak: the largest magnitude that a scale for a whole tensor is made from."""
    if quant in ("none", "mxfp4"):
        return x
    if quant == "per_block" or (static is None and quant in ("per_token", "mxfp4_fp8")):
        group = 128 if quant == "per_block" else x.size
        raw, scale = o.quantise(x[None], group, dtype)
    else:
        scale = np.float32(static.item()) if static is not None else o.scale_of(np.array(peak), dtype)
        raw = o.encode((x.astype(np.float32) / scale).astype(np.float64), dtype)[None]
        group, scale = x.size, np.array([[scale]])
    table = np.arange(256).astype(np.uint8).view(np.int8) if dtype == torch.int8 else o.fp8_table(dtype)
    return (table[raw].astype(np.float64) * np.repeat(scale, group, -1))[0]


def moe(x: Any, w1: Any, w2: Any, weights: Any, ids: Any, **named: Any) -> np.ndarray:
    """float64 [T, D]; arguments as of `fused_moe`."""
    quant, where = named.get("quant", "none"), named.get("expert_map")
    pad, inner_pad = named.get("hidden_pad", 0), named.get("intermediate_pad", 0)
    on_input, interleaved = named.get("apply_weight_on_input", False), named.get("gate_up") == "interleaved"
    valid = int(named["num_valid_tokens"]) if "num_valid_tokens" in named else len(x)
    constants = (named.get("activation", "silu"), named.get("swiglu_limit"))
    constants += (named.get("beta") or 4.0, named.get("linear_beta") or 25.0)
    depth, is_code = x.shape[1] - pad, x.element_size() == 1
    dtype = x.dtype if is_code else named.get("dtype", torch.float8_e4m3fn) if quant == "mxfp4_fp8" else w1.dtype
    a1, a2 = named.get("a1_scale"), named.get("a2_scale")

    if named.get("layout", "plain") != "plain":
        turns = named["layout"] == "shuffled_16x16_gate_up"
        w1, w2 = torch.stack([in_order(e, turns) for e in w1]), torch.stack([in_order(e) for e in w2])
        if "shared_w1" in named:
            named |= {"shared_w1": in_order(named["shared_w1"], turns), "shared_w2": in_order(named["shared_w2"])}

    def pick(name: str, e: int) -> torch.Tensor | None:
        return named[name][e] if name in named else None

    def inner(row: np.ndarray, w: np.ndarray, bias: np.ndarray | None, p: float, cut: int) -> np.ndarray:
        total = p * (w[:, :depth] @ row) + (0 if bias is None else bias)
        half = len(total) // 2
        g, u = (total[::2], total[1::2]) if interleaved else (total[:half], total[half:])
        return gate(g[: half - cut], u[: half - cut], *constants)

    rows = []
    whole = o.f64(x.float())[:, :depth]
    peak = np.abs(whole[:valid]).max() if valid else 0.0
    for t in range(len(x)):
        if is_code:
            scale = o.f64(a1).reshape(-1) if a1.numel() == 1 else o.f64(a1).reshape(len(x), -1)[t]
            rows.append(whole[t] * np.repeat(scale, x.shape[1] // scale.size)[:depth])
        else:
            rows.append(coded(whole[t], quant, dtype, a1, peak))
    inners: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
    for t in range(valid):
        for j in range(ids.shape[1]):
            e = int(ids[t, j])
            if where is not None:
                e = int(where[e]) if 0 <= e < len(where) else -1
            if not 0 <= e < len(w1):
                continue
            w, bias = values(w1[e], pick("w1_scale", e), quant), pick("w1_bias", e)
            p = float(weights[t, j]) if on_input else 1.0
            inners[t, j] = e, inner(rows[t], w, None if bias is None else o.f64(bias), p, inner_pad)
    out = np.zeros(x.shape)
    peak = max((np.abs(h).max() for _, h in inners.values()), default=0.0)
    for (t, j), (e, h) in inners.items():
        y = values(w2[e], pick("w2_scale", e), quant)[:depth, : h.size] @ coded(h, quant, dtype, a2, peak)
        if "w2_bias" in named:
            y = y + o.f64(named["w2_bias"][e])[:depth]
        out[t, :depth] += y if on_input else float(weights[t, j]) * y
    if "shared_w1" in named:
        w = values(named["shared_w1"], named.get("shared_w1_scale"), quant)
        hs = [inner(rows[t], w, None, 1.0, 0) for t in range(valid)]
        peak = max((np.abs(h).max() for h in hs), default=0.0)
        w = values(named["shared_w2"], named.get("shared_w2_scale"), quant)[:depth]
        for t, h in enumerate(hs):
            out[t, :depth] += w @ coded(h, quant, dtype, a2, peak)
    return out
