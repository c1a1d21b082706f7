"""Attention over packed and paged sequences."""
