"""Routed experts during training: a dense forward, and aux-loss-free load balancing."""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn


def dense_forward(self: nn.Module, hidden: Tensor, top_index: Tensor, top_weight: Tensor) -> Tensor:
    """Run every expert on every token and weigh by the routing (zero where not chosen).

    With eight small experts this is a handful of batched products without a host
    synchronisation, so it is far faster than gathering the tokens of each expert.
    """
    tokens = hidden.shape[0]
    weights = torch.zeros(tokens, self.num_experts, dtype=top_weight.dtype, device=hidden.device)
    weights = weights.scatter(1, top_index, top_weight)
    if self.training:
        self.load += (weights > 0).sum(0)
    shared = hidden.unsqueeze(0).expand(self.num_experts, -1, -1)
    gate, up = torch.bmm(shared, self.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    inner = self.act_fn(gate) * up * weights.t().unsqueeze(-1).to(gate.dtype)
    return torch.bmm(inner, self.down_proj.transpose(1, 2)).sum(0).to(hidden.dtype)


class Balancer:
    """Moves each router's ``e_score_correction_bias`` towards an even load."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [
            module for module in model.modules() if hasattr(getattr(module, "gate", None), "e_score_correction_bias")
        ]
        for layer in self.layers:
            experts = layer.experts
            device = layer.gate.e_score_correction_bias.device
            experts.load = torch.zeros(experts.num_experts, device=device)
            experts.forward = types.MethodType(dense_forward, experts)

    @property
    def biases(self) -> list[Tensor]:
        """The correction biases, fp32."""
        return [layer.gate.e_score_correction_bias for layer in self.layers]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """bias += rate * sign(mean load - load), and forget the counted load."""
        for layer, bias in zip(self.layers, self.biases, strict=True):
            load = layer.experts.load
            bias += rate * torch.sign(load.mean() - load)
            load.zero_()

    def remove(self) -> None:
        """Give the experts their own forward back."""
        for layer in self.layers:
            del layer.experts.forward, layer.experts.load
