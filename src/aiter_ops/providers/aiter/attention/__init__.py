"""Attention by AITER; importing the room registers its adapters."""

from . import paged as paged
from . import varlen as varlen
