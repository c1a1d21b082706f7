"""RMSNorm and layer norm kernels; importing the room registers its implementations."""

from . import rms_norm as rms_norm
