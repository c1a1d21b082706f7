"""Attention kernels; importing the room registers its implementations."""

from . import merge as merge
from . import varlen as varlen
