"""Samplers: the next token of each row of logits."""

from .greedy import greedy
from .sample import sample

__all__ = ["greedy", "sample"]
