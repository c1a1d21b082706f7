"""Transformers' own block-FP8 layers for `models.py`, with the Triton kernels they would fetch from the hub.

The kernels are ``finegrained_fp8`` of github.com/huggingface/kernels-community (`torch-ext/finegrained_fp8`), in a
directory that is named; a file `_ops.py`, which their build makes, is made where it is missing. DeepGEMM, which
transformers prefers on Hopper where its binary can be had, is not part of it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = (128, 128)
OPS = """import torch

ops = torch.ops.finegrained_fp8


def add_op_namespace_prefix(name: str) -> str:
    return f"finegrained_fp8::{name}"
"""


def use_kernels(directory: Path) -> None:
    """Have transformers' layers call the package ``finegrained_fp8`` that lies in `directory`."""
    from transformers.integrations import finegrained_fp8 as theirs

    made = directory / "finegrained_fp8" / "_ops.py"
    if not made.exists():
        made.write_text(OPS, "utf-8")
    sys.path.insert(0, str(directory))
    kernels = importlib.import_module("finegrained_fp8")
    names = ("matmul_2d", "matmul_batched", "matmul_grouped")
    theirs._FINEGRAINED_FP8 = theirs.FineGrainedFP8(*(getattr(kernels, n) for n in names))


def _with(made: nn.Module, **tensors: Tensor) -> nn.Module:
    for name, tensor in tensors.items():
        setattr(made, name, nn.Parameter(tensor, requires_grad=False))
    return made


def linear_of(codes: Tensor, scale: Tensor) -> nn.Module:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    with torch.device("meta"):
        made = FP8Linear(codes.shape[1], codes.shape[0], block_size=BLOCK)
    return _with(made, weight=codes, weight_scale_inv=scale).eval()


def experts_of(module: Any, gate_up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> nn.Module:
    from transformers.integrations.finegrained_fp8 import FP8Experts

    with torch.device("meta"):
        made = FP8Experts(module.config, block_size=BLOCK)
    tensors = {"gate_up_proj": gate_up[0], "gate_up_proj_scale_inv": gate_up[1]}
    return _with(made, **tensors, down_proj=down[0], down_proj_scale_inv=down[1]).eval()
