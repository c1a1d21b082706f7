"""Kernels of mixtures of experts; importing the room registers its implementations."""

from . import align as align
from . import fused as fused
