"""Norms, alone, with a residual addition, and with quantisation of the result."""

from .dual import dual_rms_norm, dual_rms_norm_dynamic_quant, dual_rms_norm_group_quant
from .group_quant import add_rms_norm_group_quant, gated_rms_norm_group_quant, rms_norm_group_quant
from .layer_norm import add_layer_norm, layer_norm
from .rms_norm import add_rms_norm, add_rms_norm_pad, rms_norm
from .row_quant import (
    add_rms_norm_dynamic_quant,
    add_rms_norm_static_quant,
    rms_norm_dynamic_quant,
    rms_norm_static_quant,
)

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "add_rms_norm_dynamic_quant",
    "add_rms_norm_group_quant",
    "add_rms_norm_pad",
    "add_rms_norm_static_quant",
    "dual_rms_norm",
    "dual_rms_norm_dynamic_quant",
    "dual_rms_norm_group_quant",
    "gated_rms_norm_group_quant",
    "layer_norm",
    "rms_norm",
    "rms_norm_dynamic_quant",
    "rms_norm_group_quant",
    "rms_norm_static_quant",
]
