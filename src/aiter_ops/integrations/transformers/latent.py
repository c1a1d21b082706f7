"""Multi-head latent attention (MLA, arXiv:2405.04434) on the op layer: prefill with expanded keys, decode absorbed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops

from .block_fp8 import BlockFp8Linear, dequantised
from .packed import Attention, is_paged, packed_attention, serves
from .recognise import linear

CHILDREN = {"kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"}
QUERY = ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj")


_absorbed: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Tensor, Tensor]] = weakref.WeakKeyDictionary()


def absorbed(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The halves of ``kv_b_proj`` as batches of products: queries into the latent space [H, L, nope], and values out of
    it [H, v, L]; made again when the weight has changed.
    """
    layer = module.kv_b_proj
    version = 0 if layer.weight.is_inference() else layer.weight._version
    coded = isinstance(layer, BlockFp8Linear)
    of_scale = layer.weight_scale_inv.data_ptr() if coded else 0
    state = (layer.weight.data_ptr(), of_scale, version, dtype)  # changes in place of inference tensors are not seen
    known = _absorbed.get(module)
    if known is None or known[0] != state:
        weight = dequantised(layer.weight, layer.weight_scale_inv) if coded else layer.weight
        both = weight.to(dtype).view(-1, module.qk_nope_head_dim + module.v_head_dim, module.kv_lora_rank)
        of_k, of_v = both.split((module.qk_nope_head_dim, module.v_head_dim), 1)
        known = state, of_k.transpose(1, 2).contiguous(), of_v.contiguous()
        _absorbed[module] = known
    return known[1:]


def moved_apart(x: Tensor) -> Tensor:
    """Elements 2j and 2j + 1 of the last dimension to j and j + half."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def queries(self: Any, x: Tensor) -> Tensor:
    """[B, S, H·(nope + rope)] by the projections a module has."""
    low = getattr(self, "q_a_proj", None)
    return self.q_proj(x) if low is None else self.q_b_proj(self.q_a_layernorm(low(x)))


def expanded(self: Any, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [B, L, H, nope + rope] and values [B, L, H, v] of latents [B, L, l] and rotated keys [B, L, rope]."""
    both = self.kv_b_proj(latent).unflatten(-1, (-1, self.qk_nope_head_dim + self.v_head_dim))
    k, v = both.split((self.qk_nope_head_dim, self.v_head_dim), -1)
    shared = rotated.unsqueeze(2).expand(*k.shape[:3], -1)
    return torch.cat((k, shared), -1), v


def forward(cls: type[nn.Module], meaning: Attention, ops: Any = aiter_ops) -> Callable[..., Any]:
    """hidden_states [B, S, N] -> (the same, None), latents in the cache that is given.

    Where rotations pair neighbours, the stock forward moves these half a head apart first, and keeps keys so.
    """
    stock, is_neox, scale = cls.forward, meaning.is_neox, meaning.scale

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: Any,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not serves(self, attention_mask, past_key_values, kwargs):
            return stock(self, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        lead, rope = hidden_states.shape[:2], self.qk_rope_head_dim
        q = queries(self, hidden_states).unflatten(-1, (-1, self.qk_nope_head_dim + rope))
        plain, turned = q.split((self.qk_nope_head_dim, rope), -1)
        latent, shared = self.kv_a_proj_with_mqa(hidden_states).split((self.kv_lora_rank, rope), -1)
        latent = self.kv_a_layernorm(latent)
        turned, shared = turned.transpose(1, 2), shared.unsqueeze(1)
        if not is_neox:
            turned, shared = moved_apart(turned), moved_apart(shared)
        turned, shared = ops.apply_rope(turned, shared, *position_embeddings)
        turned, shared = turned.transpose(1, 2), shared.squeeze(1)
        if is_paged(past_key_values):
            layer = past_key_values.layers[self.layer_idx]
            step = layer.write_latents(latent, shared)
            if step.start:
                return self.o_proj(decode(self, layer.latents, step, plain, turned, scale, ops).view(*lead, -1)), None
        elif past_key_values is not None:
            found = past_key_values.update(latent.unsqueeze(1), shared.unsqueeze(1), self.layer_idx)
            latent, shared = (t.squeeze(1) for t in found)
        k, v = expanded(self, latent, shared)
        out = packed_attention(torch.cat((plain, turned), -1), k, v, scale, ops)
        return self.o_proj(out.view(*lead, -1)), None

    return forward


def decode(self: Any, latents: Tensor, step: Any, plain: Tensor, turned: Tensor, scale: float, ops: Any) -> Tensor:
    """Attention of the new tokens to all pages in the latent space; [B·S, H, v]."""
    into, out_of = absorbed(self, plain.dtype)
    flat = plain.flatten(0, 1).transpose(0, 1)
    q = torch.cat((ops.bmm_a16w16(flat, into, None, True), turned.flatten(0, 1)), -1)
    found = q.new_empty(*q.shape[:2], into.shape[1])
    ops.mla_decode(
        *(q, latents, found, step.ends, step.page_ends, step.pages, step.last, step.count, scale, latents.shape[1])
    )
    return ops.bmm_a16w16(found.transpose(0, 1), out_of, None, True)


def stubs(module: Any, hidden: int) -> dict[str, nn.Module | None]:
    """The children of a trial: small layers of the module's own widths."""
    heads, low = module.num_heads, module.q_lora_rank
    query = heads * (module.qk_nope_head_dim + module.qk_rope_head_dim)
    latent = module.kv_lora_rank + module.qk_rope_head_dim
    made: dict[str, nn.Module | None] = {
        "kv_a_proj_with_mqa": linear(hidden, latent, 1),
        "kv_a_layernorm": module.kv_a_layernorm,
        "kv_b_proj": linear(module.kv_lora_rank, heads * (module.qk_nope_head_dim + module.v_head_dim), 2),
        "o_proj": linear(heads * module.v_head_dim, hidden, 3),
    }
    if low is None:
        return {**dict.fromkeys(QUERY), **made, "q_proj": linear(hidden, query, 4)}
    named = {"q_a_proj": linear(hidden, low, 4), "q_a_layernorm": module.q_a_layernorm}
    return {**made, "q_proj": None, **named, "q_b_proj": linear(low, query, 5)}
