"""Routers of mixture-of-experts models: which experts a token goes to, and with which weight."""

from .grouped import biased_grouped_topk, grouped_topk
from .plain import topk_sigmoid, topk_softmax, topk_softplus_sqrt

__all__ = [
    "biased_grouped_topk",
    "grouped_topk",
    "topk_sigmoid",
    "topk_softmax",
    "topk_softplus_sqrt",
]
