"""Matrix products: kernels with plain loads for any GPU, and one that uses Hopper's copy engine."""

from . import batched, batched_plain, mx, plain

__all__ = ["batched", "batched_plain", "mx", "plain"]
