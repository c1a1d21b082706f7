"""Quantisation to FP8, int8 and the OCP MX formats, and the way back."""

from .dequant import dequant
from .fp8 import group_quant, per_tensor_quant, per_tensor_quant_static, per_token_quant
from .mx import mxfp4_quant, mxfp8_quant

__all__ = [
    "dequant",
    "group_quant",
    "mxfp4_quant",
    "mxfp8_quant",
    "per_tensor_quant",
    "per_tensor_quant_static",
    "per_token_quant",
]
