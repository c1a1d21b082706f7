"""RMSNorm and layer norm kernels; importing the room registers its implementations."""

from . import dual as dual
from . import group_quant as group_quant
from . import layer_norm as layer_norm
from . import rms_norm as rms_norm
from . import row_quant as row_quant
