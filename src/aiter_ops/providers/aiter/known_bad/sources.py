"""Where the evidence is."""

AITER = "https://github.com/ROCm/aiter"
NEWEST = f"{AITER}/blob/v0.1.20.post1"
"""AITER's sources at the newest release that was read."""
