"""Other libraries' kernels behind the ops' signatures: what `bench` measures ours against."""

from . import aiter_triton, flag_gems, liger, sglang, torch_fused, vllm
from .loading import load, probe
from .registry import EAGER, LOADED, PEERS, Factory, describe, factories

__all__ = [
    "EAGER",
    "LOADED",
    "PEERS",
    "Factory",
    "aiter_triton",
    "describe",
    "factories",
    "flag_gems",
    "liger",
    "load",
    "probe",
    "sglang",
    "torch_fused",
    "vllm",
]
