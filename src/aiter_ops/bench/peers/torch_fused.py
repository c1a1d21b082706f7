"""What torch itself has as one kernel."""

from __future__ import annotations

import torch.nn.functional as F

from .common import dual_norm, plain_weight
from .registry import Call, Kwargs, peer


@peer("rms_norm", "torch.fused")
def torch_rms_norm(kw: Kwargs) -> Call:
    x, weight, eps = kw["x"], plain_weight(kw), kw["eps"]
    return lambda: F.rms_norm(x, (x.shape[-1],), weight, eps)


@peer("dual_rms_norm", "torch.two")
def torch_dual_rms_norm(kw: Kwargs) -> Call:
    return dual_norm(kw, torch_rms_norm)


@peer("layer_norm", "torch.fused")
def torch_layer_norm(kw: Kwargs) -> Call:
    x, weight, bias, eps = kw["x"], kw.get("weight"), kw.get("bias"), kw["eps"]
    return lambda: F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
