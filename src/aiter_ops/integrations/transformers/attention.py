"""Self-attention of transformers' decoder layers on the op layer: projections, rotation, caches and attention.

Two structures are known whole: query, key and value projections, apart or joint (Llama and most others), and the latents
of MLA (DeepSeek-V2/V3). A module counts as one only where its class's own forward gives the same numbers; what that asks
transformers' attention interface for says how scores are made. Any other module that asks it gets attention alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops

from . import beside, latent
from .attend import attend, attend_in_room
from .interface import why_not
from .masks import kind_of
from .packed import Attention, arguments_of, cache_name, is_paged, turned

NORMS = {"q_norm", "k_norm"}
PAGED = "_aiter_ops_paged"
"""Name of the mark on a forward that takes a `PagedCache`."""


def attention_forward(module: nn.Module, meaning: Attention, ops: Any = aiter_ops) -> Callable[..., Any]:
    """hidden_states [B, S, N] -> (the same, None), keys and values in the cache that is given."""
    if meaning.op == "mla_decode":
        forward = latent.forward(type(module), meaning, ops)
    else:
        forward = _plain_forward(module, meaning, ops)
    setattr(forward, PAGED, True)
    return forward


def _plain_forward(module: Any, meaning: Attention, ops: Any) -> Callable[..., Any]:
    stock, arguments = type(module).forward, arguments_of(type(module).forward)
    cached = cache_name(stock)
    normed, joint = set(module._modules) >= NORMS, "qkv_proj" in module._modules
    width: int = module.head_dim
    scores_of = meaning.scores_of()
    fused = meaning.is_neox and not meaning.apart and meaning.angles != "complex"
    twice = meaning.angles == "full"
    from .growing import growing  # needs transformers

    @beside.asks
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = arguments(args, kwargs)
        positions, mask = given.get("position_embeddings"), given.get("attention_mask")
        cache = given.get(cached)
        if positions is None or kind_of(mask) == 0 or why_not(self, (hidden_states,), given) is not None:
            return stock(self, hidden_states, **given)
        batch, count, _ = hidden_states.shape
        heads = (
            (batch, count, -1, width) if count > 1 else (batch, -1, 1, width)
        )  # a single token needs no transposition
        found = None if joint else beside.product(self, hidden_states)
        if joint:
            both = self.qkv_proj(hidden_states)
            groups = both.shape[2] // (self.num_key_value_groups + 2)
            parts = both.split((groups * self.num_key_value_groups, groups, groups), 2)
        elif found is not None:
            parts = found[0].split(found[1], -1)
        else:
            parts = tuple([p(hidden_states) for p in (self.q_proj, self.k_proj, self.v_proj)])
        q, k, v = [part.view(heads) for part in parts]
        if normed:
            q, k = self.q_norm(q), self.k_norm(k)
        if count > 1:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = scores_of(self)
        layer = None if cache is None else growing(cache, self.layer_idx, k, mask, meaning.window)
        if layer is not None and layer.room is not None and count == 1 and fused and (normed or found is not None):
            # in place: nobody else has seen this q and k
            out = attend_in_room(layer, q, k, v, mask, scores, ops, positions, twice)
            return self.o_proj(out.reshape(batch, count, -1)), None
        q, k = turned(q, k, positions, meaning, ops)
        if cache is not None and mask is None and is_paged(cache):
            out = paged(cache.layers[self.layer_idx], q.transpose(1, 2), k, v, scores, ops)
        elif layer is not None:
            out = attend_in_room(layer, q, k, v, mask, scores, ops)
        else:
            if cache is not None:
                k, v = cache.update(k, v, self.layer_idx)
            out = attend(q.transpose(1, 2), k, v, mask, scores, ops)
        return self.o_proj(out.reshape(batch, count, -1)), None

    return forward


def paged(layer: Any, q: Tensor, k: Tensor, v: Tensor, scores: Any, ops: Any) -> Tensor:
    """Append k, v [B, Hk, S, D] to the layer's pages, and attend to all of them with q [B, S, H, D]; the same shape."""
    step = layer.write(k.transpose(1, 2), v.transpose(1, 2))
    if step.start == 0:
        return attend(q, k, v, None, scores, ops)
    flat = q.flatten(0, 1)
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    length = step.start + step.count
    ops.paged_attention(
        *(flat, layer.keys, layer.values, out, step.ends, step.lengths, step.table, step.count, length, *scores.terms)
    )
    return out.view(q.shape)


def attends_on_pages(model: nn.Module) -> bool:
    """Whether any attention of the model is on the op layer."""
    return any(getattr(m.__dict__.get("forward"), PAGED, False) for m in model.modules())
