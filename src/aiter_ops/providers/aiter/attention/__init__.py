"""Attention by AITER; importing the room registers its adapters."""

from . import varlen as varlen
"""Attention by AITER."""

from . import paged as paged
