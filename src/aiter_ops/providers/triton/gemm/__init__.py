"""Matrix products: kernels with plain loads for any GPU, and one that uses Hopper's copy engine."""

from . import batched, plain

__all__ = ["batched", "plain"]
