"""Attention kernels; importing the room registers its implementations."""
