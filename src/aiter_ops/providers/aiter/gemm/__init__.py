"""Matrix products by AITER: Composable Kernel and assembly for 8-bit codes, Triton for the rest.

Products are summed in fp32 (int8: exactly). Entries that may split K over atomic additions in the result's dtype are
told not to where they have an argument for it, and are known bad where they have none (known_bad).
"""

from . import a16w16, batched, codes, mx

__all__ = ["a16w16", "batched", "codes", "mx"]
