"""Routing kernels; importing the room registers its implementations."""

from . import routers as routers
