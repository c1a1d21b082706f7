"""Gated activation kernels; importing the room registers its implementations."""

from . import gated as gated
from . import quantised as quantised
