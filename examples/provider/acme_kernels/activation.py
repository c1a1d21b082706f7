"""Gated activations of provider ``acme``."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import PROVIDER


def _no_limit(x: torch.Tensor, limit: float | None = None) -> str | None:
    """No argument is ignored: what is not honoured is refused, with a short reason."""
    return None if limit is None else "limit is not implemented"


@PROVIDER.implements("silu_and_mul", refuses=lambda platform: _no_limit)
def silu_and_mul(x: torch.Tensor, limit: float | None = None) -> torch.Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype).contiguous()
