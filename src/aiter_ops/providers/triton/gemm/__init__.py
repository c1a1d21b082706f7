"""Kernels of matrix products; importing the room registers its implementations."""

from . import batched as batched
