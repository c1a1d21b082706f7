"""Runs the adapters of provider ``aiter`` against the real AITER's Triton kernels, where there is no AMD GPU."""
