"""Self-attention of transformers' decoder layers on the op layer: rotation, packed and paged attention.

Two structures are known: query, key and value projections (Llama and most others), and the latents of MLA
(DeepSeek-V2/V3). A module counts as one only where its class's own forward gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops

from . import latent
from .packed import Attention, References, is_paged, packed_attention, serves
from .recognise import close, forward_of, linear, twin_of

PLAIN = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
PAGED = "_aiter_ops_paged"
"""Name of the mark on a forward that takes a `PagedCache`."""

HIDDEN, BATCH, LENGTH = 64, 2, 5
"""Sizes of the trial."""


def attention_forward(module: nn.Module, meaning: Attention, ops: Any = aiter_ops) -> Callable[..., Any]:
    """hidden_states [B, S, N] -> (the same, None), keys and values in the cache that is given."""
    if meaning.op == "mla_decode":
        forward = latent.forward(type(module), meaning, ops)
    else:
        forward = _plain_forward(module, meaning, ops)
    setattr(forward, PAGED, True)
    return forward


def _plain_forward(module: Any, meaning: Attention, ops: Any) -> Callable[..., Any]:
    stock, is_neox, scale = type(module).forward, meaning.is_neox, meaning.scale
    normed = set(module._modules) >= NORMS
    width: int = module.head_dim

    def forward(
        self: nn.Module,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        if position_embeddings is None or not serves(self, attention_mask, past_key_values, kwargs):
            return stock(self, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        lead = hidden_states.shape[:2]
        q, k, v = (p(hidden_states).view(*lead, -1, width) for p in (self.q_proj, self.k_proj, self.v_proj))
        if normed:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = ops.apply_rope(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings, is_neox)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if past_key_values is None:
            out = packed_attention(q, k, v, scale, ops)
        elif is_paged(past_key_values):
            out = paged(past_key_values.layers[self.layer_idx], q, k, v, scale, ops)
        else:
            k, v = past_key_values.update(k.transpose(1, 2), v.transpose(1, 2), self.layer_idx)
            out = packed_attention(q, k.transpose(1, 2), v.transpose(1, 2), scale, ops)
        return self.o_proj(out.view(*lead, -1)), None

    return forward


def paged(layer: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, ops: Any) -> Tensor:
    """Append k, v [B, S, Hk, D] to the layer's pages, and attend to all of them; [B·S, H, D]."""
    step = layer.write(k, v)
    if step.start == 0:
        return packed_attention(q, k, v, scale, ops)
    flat = q.flatten(0, 1)
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    length = step.start + step.count
    ops.paged_attention(
        *(flat, layer.keys, layer.values, out, step.ends, step.lengths, step.table, step.count, length, scale)
    )
    return out


def attends_on_pages(model: nn.Module) -> bool:
    """Whether any attention of the model is on the op layer."""
    return any(getattr(m.__dict__.get("forward"), PAGED, False) for m in model.modules())


# --- recognition ------------------------------------------------------------------------------------------------------


def attention(module: nn.Module) -> Attention | str | None:
    """What kind of attention `module` is, told by trial; a reason where it looks like one and computes something else."""
    children = {n for n, m in module._modules.items() if m is not None}
    if children - NORMS == PLAIN:
        stubs = _plain_stubs
    elif children >= latent.CHILDREN:
        stubs = latent.stubs
    else:
        named = children and type(module).__name__.endswith("Attention")
        return "its projections are none of the known kinds" if named else None
    if more := _more(module):
        return more
    try:
        return _tried(module, stubs(module, HIDDEN))
    except Exception as error:  # a stranger's forward may need more than the trial gives
        return f"its attention cannot be tried alone ({type(error).__name__})"


def _more(module: Any) -> str | None:
    """What the trial's few tokens would not show."""
    used = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if used != "sdpa":
        return f"its attention implementation is {used!r}, which is given masks; 'sdpa' is replaced"
    if getattr(module, "is_causal", True) is False:
        return "its attention is not causal"
    if getattr(module, "sliding_window", None):
        return "its attention has a sliding window"
    if module._parameters or any(getattr(module, n, None) for n in ("sinks", "attn_logit_softcapping")):
        return "its attention has sinks or a cap on scores"
    return None


def _plain_stubs(module: Any, hidden: int) -> dict[str, nn.Module | None]:
    keys = 2 * module.head_dim
    sizes = {"q_proj": keys * module.num_key_value_groups, "k_proj": keys, "v_proj": keys}
    made: dict[str, nn.Module | None] = {n: linear(hidden, size, i) for i, (n, size) in enumerate(sizes.items())}
    norms = {n: m for n, m in module._modules.items() if n in NORMS}
    return {**made, **norms, "o_proj": linear(sizes["q_proj"], hidden, 3)}


def _tried(module: Any, stubs: dict[str, nn.Module | None]) -> Attention | str:
    """The candidate that agrees with the class's own forward, over a pass without a cache and one with pages."""
    from .pages import PagedCache

    twin = twin_of(module, {}, {n: m if m is None else _on_cpu(m) for n, m in stubs.items()})
    twin.__dict__["layer_idx"] = 0
    twin.training = False
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator)
    width = getattr(module, "qk_rope_head_dim", None) or module.head_dim
    angle = torch.randn(BATCH, LENGTH, width // 2, generator=generator).repeat(1, 1, 2)
    turn = angle.cos(), angle.sin()
    hidden = torch.full((LENGTH, LENGTH), torch.finfo(torch.float32).min).triu(1).expand(BATCH, 1, -1, -1)
    want = forward_of(twin, x, position_embeddings=turn, attention_mask=hidden, past_key_values=None)[0]
    scale = float(getattr(module, "scaling", None) or module.head_dim**-0.5)
    name = "mla_decode" if "kv_b_proj" in stubs else "paged_attention"
    for is_neox in (True, False):
        meaning = Attention(name, {}, is_neox, scale)
        ours = attention_forward(twin, meaning, References())
        with torch.no_grad():
            cache = PagedCache(1, BATCH, LENGTH, References())
            got = [ours(twin, x, turn)[0]]
            for part in (slice(0, LENGTH - 1), slice(LENGTH - 1, LENGTH)):
                first = tuple(t[:, part] for t in turn)
                got.append(ours(twin, x[:, part], first, None, cache)[0])
        if close(got[0], want) and close(torch.cat(got[1:], 1), want):
            return meaning
    return "its attention computes something else than the known kinds"


def _on_cpu(module: nn.Module) -> nn.Module:
    """A norm with its parameters in fp32 on the CPU; layers of the trial are there already."""
    if isinstance(module, nn.Linear):
        return module
    own = dict(module.named_parameters(recurse=False))
    return twin_of(module, {n: p.detach().float().cpu() for n, p in own.items()}, {})
