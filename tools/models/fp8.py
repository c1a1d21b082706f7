"""DeepSeek's block-FP8 checkpoint format: e4m3 weights with a scale per 128x128 block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 128
E4M3_MAX = 448.0
QUANTIZATION_CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [BLOCK, BLOCK],
    "activation_scheme": "dynamic",
}
_LINEAR = re.compile(
    r"\.(self_attn\.(q_a|q_b|o)_proj|self_attn\.kv_a_proj_with_mqa|self_attn\.kv_b_proj"
    r"|mlp(\.shared_experts|\.experts\.\d+)?\.(gate|up|down)_proj)\.weight$"
)
_FUSED = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[..., N, K] to e4m3 and its fp32 scales [..., ceil(N/128), ceil(K/128)] (amax / 448)."""
    n, k = weight.shape[-2:]
    blocks = _to_blocks(weight.float())
    scale = blocks.abs().amax(dim=(-3, -1)).clamp_min(1e-12) / E4M3_MAX
    scaled = (blocks / scale[..., :, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX)
    return _from_blocks(scaled, n, k).to(torch.float8_e4m3fn), scale


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """The fp32 weight that e4m3 ``weight`` with block ``scale`` stands for."""
    n, k = weight.shape[-2:]
    return _from_blocks(_to_blocks(weight.float()) * scale[..., :, None, :, None], n, k)


def _to_blocks(weight: Tensor) -> Tensor:
    n, k = weight.shape[-2:]
    padded = F.pad(weight, (0, -k % BLOCK, 0, -n % BLOCK))
    rows, columns = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
    return padded.reshape(*weight.shape[:-2], rows, BLOCK, columns, BLOCK)


def _from_blocks(blocks: Tensor, n: int, k: int) -> Tensor:
    return blocks.flatten(-4, -3).flatten(-2, -1)[..., :n, :k]


def is_quantised(name: str) -> bool:
    """Whether the parameter ``name``, fused or per expert, is stored in FP8."""
    return bool(_LINEAR.search(name) or _FUSED.search(name))


@contextmanager
def rounded_weights(model: nn.Module) -> Iterator[None]:
    """Within it, the quantised parameters hold what their FP8 copy would.

    Gradients taken inside belong to the rounded weights and are applied to the exact
    ones afterwards: the straight-through estimator.
    """
    chosen = [p for name, p in model.named_parameters() if is_quantised(name)]
    exact = [p.detach().clone() for p in chosen]
    with torch.no_grad():
        for parameter in chosen:
            parameter.copy_(dequantise(*quantise(parameter)))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(chosen, exact, strict=True):
                parameter.copy_(value)


def unfuse_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name routed experts one by one, as DeepSeek-V3's own checkpoint does."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _FUSED.search(name)
        if match is None:
            named[name] = tensor
            continue
        prefix = name[: -len(f"{match[1]}_proj")]
        for expert, weight in enumerate(tensor):
            parts = {"down": weight}
            if match[1] == "gate_up":
                parts = dict(zip(("gate", "up"), weight.chunk(2), strict=True))
            for part, value in parts.items():
                named[f"{prefix}{expert}.{part}_proj.weight"] = value
    return named


def to_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state dict as block-FP8 tensors ready to be stored."""
    stored: dict[str, Tensor] = {}
    for name, tensor in unfuse_experts(state).items():
        if is_quantised(name):
            weight, scale = quantise(tensor)
            stored[name] = weight.contiguous()
            stored[f"{name}_scale_inv"] = scale.contiguous()
        elif name.endswith("e_score_correction_bias"):
            stored[name] = tensor.float().contiguous()
        else:
            stored[name] = tensor.to(torch.bfloat16).contiguous()
    return stored


def from_checkpoint(stored: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Stored tensors with every FP8 weight dequantised to ``dtype``."""
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(f"{name}_scale_inv")
        state[name] = tensor if scale is None else dequantise(tensor, scale).to(dtype)
    return state
