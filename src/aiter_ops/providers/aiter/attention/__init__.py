"""Attention by AITER; importing the room registers its adapters."""

from . import varlen as varlen
