"""Puts the FP8 weights of a checkpoint back into a model that was built from their dequantised values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .block_fp8 import BLOCK, GATES, BlockFp8Experts, BlockFp8Linear, dequantised
from .experts import Experts, experts

Stored = dict[str, tuple[Tensor, Tensor]]
"""Path in the checkpoint -> FP8 weight [N, K] and fp32 scale [ceil(N/128), ceil(K/128)]."""

NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What checkpoints call gate, up and down of an expert."""

PLACES = (("", ""), (".mlp.", ".block_sparse_moe."))
"""What in a module's path is called otherwise in checkpoints: as DeepSeek and Qwen, as Mixtral and MiniMax do."""


def install(model: nn.Module, stored: Stored) -> tuple[int, int, list[str]]:
    """Put `BlockFp8Linear` and `BlockFp8Experts` where `model` has the dequantised weights of `stored`.

    Returns how many linear layers and how many experts keep their FP8 weights, and the paths that do not.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    left = dict(stored)
    linears = [p for p in stored if _is_linear(modules.get(p), *stored[p])]
    for path in linears:
        weight, scale = left.pop(path)
        linear = modules[path]
        device = linear.weight.device
        _put(modules, path, BlockFp8Linear(weight.to(device), scale.to(device), linear.bias))
    kept = 0
    for path, module in modules.items():
        taken, made = _experts(path, module, left)
        if made is not None:
            _put(modules, path, made)
            kept += len(made.gate_up_proj)
            for name in taken:
                del left[name]
    return len(linears), kept, list(left)


def _put(modules: dict[str, Any], path: str, made: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(modules[parent], name, made)


def _is_linear(module: Any, weight: Tensor, scale: Tensor) -> bool:
    return type(module) is nn.Linear and module.weight.shape == weight.shape and weight.shape[1] % BLOCK == 0


def _experts(path: str, module: nn.Module, stored: Stored) -> tuple[list[str], BlockFp8Experts | None]:
    """The paths of an experts module's weights in the checkpoint, and the module that keeps them in FP8."""
    first, second = (module._parameters.get(n) for n in ("gate_up_proj", "down_proj"))
    if first is None or second is None or first.dim() != 3:
        return [], None
    names = next((n for n in _names(path, len(first)) if all(p in stored for e in n for p in e)), None)
    found = experts(module) if names is not None else None
    if names is None or not isinstance(found, Experts) or _more_than_gated(found, module):
        return [], None
    if any(n % BLOCK for n in (*second.shape[1:], *first.shape[1:])) or first.shape[1] != 2 * second.shape[2]:
        return [], None
    gate_up = _stacked([[stored[gate], stored[up]] for gate, up, _ in names])
    down = _stacked([[stored[name]] for _, _, name in names])
    for e in (0, len(first) - 1):  # that transformers put them together as is done here
        for (codes, scale), built in ((gate_up, first), (down, second)):
            if not torch.equal(dequantised(codes[e], scale[e]).to(built.dtype), built[e].cpu()):
                return [], None
    made = BlockFp8Experts(gate_up, down, found.kwargs["activation"]).to(first.device)
    return [path for expert in names for path in expert], made


def _names(path: str, count: int) -> list[list[list[str]]]:
    """Every way to name the weights of `count` experts: gate, up and down of each."""
    return [
        [[f"{path.replace(ours, theirs) if ours else path}.{e}.{n}" for n in names] for e in range(count)]
        for ours, theirs in PLACES
        for names in NAMES
    ]


def _more_than_gated(found: Experts, module: nn.Module) -> bool:
    plain = {"activation", "gate_up"} == set(found.kwargs) and found.kwargs["gate_up"] == "separated"
    return not plain or found.turned or found.kwargs["activation"] not in GATES or len(module._parameters) > 2


def _stacked(experts: list[list[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Codes [E, N, K] and scales, the parts of an expert below each other."""
    codes = torch.stack([torch.cat([codes.view(torch.uint8) for codes, _ in parts]) for parts in experts])
    return codes.view(experts[0][0][0].dtype), torch.stack([torch.cat([s for _, s in parts]) for parts in experts])
