"""Experts with fused 3-D weights: whether `fused_moe` computes the same, found by trial, and the forward that calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.op import get_op

from .recognise import ACTIVATIONS, Meaning, close, forward_of, twin_of
from .replace import LAID_OUT, other_dtype

WEIGHTS = ("gate_up_proj", "down_proj")
BIASES = ("gate_up_proj_bias", "down_proj_bias")
DEPTHS, SIZES = ("hidden_dim", "hidden_size"), ("intermediate_dim", "intermediate_size", "expert_dim")
"""Names under which modules keep D and I."""

TOKENS, DEPTH, SIZE = 48, 24, 16


@dataclass(frozen=True)
class Experts(Meaning):
    """`fused_moe` with its constants. turned: the weights are stored as [E, D, 2·I] and [E, I, D]."""

    turned: bool = False


def experts(module: nn.Module) -> Meaning | str | None:
    """gate_up_proj [E, 2·I, D], down_proj [E, D, I], perhaps turned, perhaps with biases: x, ids, weights -> [T, D]."""
    first, second = (module._parameters.get(n) for n in WEIGHTS)
    if first is None or second is None or first.dim() != 3 or second.dim() != 3:
        return None
    own = {n for n, p in module._parameters.items() if p is not None}
    if more := sorted((own | set(module._buffers)) - {*WEIGHTS, *BIASES}):
        return f"has more tensors: {', '.join(more)}"
    if more := sorted(set(module._modules) - set(ACTIVATIONS)):
        return f"has more parts: {', '.join(more)}"
    if getattr(module, "_is_expert_parallel", False):
        return "holds a part of the experts only"
    turned = first.shape[2] == 2 * second.shape[1] and first.shape[1] == second.shape[2]
    if not turned and (first.shape[1] != 2 * second.shape[2] or first.shape[2] != second.shape[1]):
        return f"its weights have the shapes {list(first.shape)} and {list(second.shape)}"
    count = first.shape[0]
    values = _drawn(count, own)
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(TOKENS, DEPTH, generator=generator)
    ids = torch.rand(TOKENS, count, generator=generator).topk(min(2, count)).indices
    weights = torch.rand(ids.shape, generator=generator) + 0.1
    stored = {n: v.mT.contiguous() if turned and v.dim() == 3 else v for n, v in values.items()}
    twin = twin_of(module, stored, dict(module._modules))
    twin.__dict__.update(
        {n: DEPTH for n in DEPTHS if hasattr(module, n)} | {n: SIZE for n in SIZES if hasattr(module, n)}
    )
    twin.__dict__["config"] = SimpleNamespace(_experts_implementation="eager")
    try:
        result = forward_of(twin, x, ids, weights)
    except Exception as error:  # whatever a stranger's forward raises, these are no plain experts
        return f"cannot be tried alone ({type(error).__name__})"
    args = (x, *(values[n] for n in WEIGHTS), weights, ids.int())
    biases = {op: values[n] for op, n in zip(("w1_bias", "w2_bias"), BIASES, strict=True) if n in values}
    for kwargs in _candidates(module):
        if close(result, get_op("fused_moe").reference(*args, **biases, **kwargs)):
            return Experts("fused_moe", kwargs, turned)
    return "they compute something else than the known experts"


def _drawn(count: int, own: set[str]) -> dict[str, Tensor]:
    """Weights of a small size as the op takes them, and those biases that are in `own`."""
    generator = torch.Generator().manual_seed(0)
    shapes = {WEIGHTS[0]: (2 * SIZE, DEPTH), WEIGHTS[1]: (DEPTH, SIZE), BIASES[0]: (2 * SIZE,), BIASES[1]: (DEPTH,)}
    return {n: torch.randn(count, *shape, generator=generator) for n, shape in shapes.items() if n in own}


def _candidates(module: nn.Module) -> Iterator[dict[str, Any]]:
    limit = next(
        (float(v) for n in ("limit", "swiglu_limit") if isinstance(v := getattr(module, n, None), (int, float))), None
    )
    for gate_up in ("separated", "interleaved"):
        for cut in dict.fromkeys((None, limit)):
            more = {} if cut is None else {"swiglu_limit": cut}
            for activation in ("silu", "gelu", "gelu_tanh", "swiglu_oai"):
                yield {"activation": activation, "gate_up": gate_up, **more}


def experts_forward(module: nn.Module, meaning: Experts) -> Callable[..., Any]:
    """x [T, D], ids [T, k], weights [T, k] -> [T, D] by the op, in x's dtype."""
    stock, kwargs = type(module).forward, meaning.kwargs
    biases = [(op, n) for op, n in zip(("w1_bias", "w2_bias"), BIASES, strict=True) if n in module._parameters]
    arguments = arguments_of(stock)

    def forward(self: nn.Module, *args: Any, **named: Any) -> Any:
        x, ids, weights = arguments(*args, **named)
        w1, w2 = self.gate_up_proj, self.down_proj
        if other_dtype(self, "gate_up_proj", x):
            return stock(self, *args, **named)
        if meaning.turned:
            w1, w2 = w1.mT, w2.mT
        more = {op: getattr(self, n) for op, n in biases}
        return aiter_ops.fused_moe(x, w1, w2, weights.float(), ids.int(), **more, **kwargs)

    return forward


def lay_out(module: nn.Module) -> None:
    """Give turned weights the strides the op reads without a copy. Shapes and values stay, and so what is saved."""
    for name in WEIGHTS:
        weight: Any = module._parameters[name]
        weight.data = weight.data.mT.contiguous().mT
    module.__dict__[LAID_OUT] = WEIGHTS


def arguments_of(stock: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Reads x, ids and weights out of a call by the names `stock` gives them."""
    names = list(inspect.signature(stock).parameters)[1:4]

    def read(*args: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, ids, weights = (*args, *(named[n] for n in names[len(args) :]))
        return x, ids, weights

    return read


def coded_experts_forward(module: nn.Module, meaning: Meaning) -> Callable[..., Any]:
    """`BlockFp8Experts` by the op."""
    activation = module.activation

    def forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return aiter_ops.fused_moe(
            hidden_states,
            self.gate_up_proj,
            self.down_proj,
            top_k_weights.float(),
            top_k_index.int(),
            activation=activation,
            quant="per_block",
            w1_scale=self.gate_up_proj_scale_inv,
            w2_scale=self.down_proj_scale_inv,
        )

    return forward
