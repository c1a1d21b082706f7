"""Norms by AITER: HIP, Composable Kernel and Opus entries, and Triton where the result is quantised by group.

Against the references: AITER normalises x + residual before it is rounded (the sum that is returned is rounded).
Within the tolerance of a norm in bf16 or fp16; not where codes are made of it, so those entries serve fp32 only.
Groups whose values are all below 1e-10 get the scale of 1e-10. On gfx942 HIP and Composable Kernel cut fp32 to bf16
unless AITER was built otherwise (OPUS_FP32_to_BF16_DEFAULT, CK_TILE_FLOAT_TO_BFLOAT16_DEFAULT). Maxima are taken with
instructions that may pass over a NaN.
"""

from . import dual as dual
from . import plain as plain
from . import quantised as quantised
