"""Attention by AITER."""

from . import paged as paged
