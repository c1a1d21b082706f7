"""The gated activations of expert MLPs, in fp32."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from aiter_ops.ops import formulas as f

Activation = Literal["silu", "gelu", "gelu_tanh", "swiglu_oai", "situv2"]

SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
"""gpt-oss's constants."""

BETA, LINEAR_BETA = 4.0, 25.0
"""Of ``situv2`` where not given (AITER since 0.1.20)."""


def rows_of_gate_and_up(rows: Tensor, gate_up: str, size: int) -> tuple[Tensor, Tensor]:
    """The first `size` gate and up entries along the first dimension: two halves, or every other one."""
    half = rows.shape[0] // 2
    gate, up = (rows[:half], rows[half:]) if gate_up == "separated" else (rows[::2], rows[1::2])
    return gate[:size], up[:size]


def gated(
    gate: Tensor, up: Tensor, activation: str, limit: float | None, beta: float | None, linear_beta: float | None
) -> Tensor:
    """act(gate) · up of fp32 tensors; see `fused_moe` for each activation."""
    if activation == "situv2":
        b, lb = BETA if beta is None else beta, LINEAR_BETA if linear_beta is None else linear_beta
        return b * torch.tanh(gate / b) * torch.sigmoid(gate) * (lb * torch.tanh(up / lb))
    if activation == "swiglu_oai" and limit is None:
        limit = SWIGLU_LIMIT
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if activation == "swiglu_oai":
        return (up + 1) * (gate * torch.sigmoid(SWIGLU_ALPHA * gate))
    return (F.silu(gate) if activation == "silu" else f.gelu(gate, activation == "gelu_tanh")) * up
