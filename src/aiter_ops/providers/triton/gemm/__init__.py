"""Matrix products: kernels with plain loads for any GPU, and one that uses Hopper's copy engine."""

from . import batched, mx, plain

__all__ = ["batched", "mx", "plain"]
