"""Quantisation kernels; importing the room registers its implementations."""

from . import dequant as dequant
from . import groups as groups
from . import mx as mx
from . import tensors as tensors
