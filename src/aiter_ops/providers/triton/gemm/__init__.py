"""Matrix products: a kernel with plain loads for any GPU, and one that uses Hopper's copy engine."""

from . import plain

__all__ = ["plain"]
