"""Rotary embedding kernels; importing the room registers its implementations."""

from . import functional as functional
from . import rotary as rotary
