"""Sampling kernels; importing the room registers its implementations."""

from . import draw as draw
from . import largest as largest
