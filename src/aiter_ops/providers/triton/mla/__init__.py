"""MLA kernels; importing the room registers its implementations."""

from . import decode as decode
from . import expand as expand
from . import plan as plan
