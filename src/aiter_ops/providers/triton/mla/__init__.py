"""MLA kernels; importing the room registers its implementations."""

from . import decode as decode
