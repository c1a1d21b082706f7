"""Kernels that write paged caches; importing the room registers its implementations."""

from . import fused as fused
from . import plain as plain
