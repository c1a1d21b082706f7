"""Norms by AITER: HIP, Composable Kernel and Opus entries, and Triton where the result is quantised by group.

Against the references: AITER normalises x + residual before it is rounded (the sum that is returned is rounded), so
a value, and a code, may differ by the rounding of the sum; groups whose values are all below 1e-10 get the scale of
1e-10; on gfx942 HIP and Composable Kernel cut fp32 to bf16 unless AITER was built with another rounding
(OPUS_FP32_to_BF16_DEFAULT, CK_TILE_FLOAT_TO_BFLOAT16_DEFAULT); maxima are taken with instructions that may pass over a NaN.
"""

from . import dual as dual
from . import plain as plain
from . import quantised as quantised
