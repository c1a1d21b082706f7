"""Attention kernels; importing the room registers its implementations."""

from . import merge as merge
from . import paged as paged
from . import paged_plan as paged_plan
from . import varlen as varlen
