"""What AITER's functions compute, in plain PyTorch on the CPU, with its conventions: see `machine` and `package`."""
