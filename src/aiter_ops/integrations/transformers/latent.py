"""Multi-head latent attention (MLA, arXiv:2405.04434) on the op layer: prefill with expanded keys, decode absorbed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.core.tracing import warn_once
from aiter_ops.ops.formulas import FLOATS

from . import beside
from .attend import Scores, attend
from .block_fp8 import BlockFp8Linear, dequantised
from .interface import why_not
from .latent_cache import appended, hold_together, together, tokens_of
from .masks import FRESH, FRESH_SPAN, kind_of, still
from .packed import Attention, arguments_of, cache_name, is_paged, turned
from .quantiser_fp8 import quantised_linear
from .recognise import Meaning, linear
from .replace import KEPT, LOADING

CHILDREN = {"kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"}
QUERY = ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj")


class Kept(beside.Keyed):
    """The halves of a ``kv_b_proj``, and the state of its tensors that they were made from. read: compiled code or a
    captured graph reads them where they lie."""

    def __init__(self, halves: tuple[Tensor, Tensor], state: tuple[Any, ...]) -> None:
        super().__init__()
        self.halves, self.state, self.read = halves, state, False

    def fits(self, made: tuple[Tensor, Tensor]) -> bool:
        """Whether what was made anew can be put in the same memory."""
        forms = [[(t.shape, t.dtype, t.device) for t in halves] for halves in (self.halves, made)]
        return forms[0] == forms[1]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_read(key: str) -> bool:
    """Called once when code is traced, and whenever a graph is captured."""
    beside.by_key(key).read = True
    return True


def absorbed(module: Any, dtype: torch.dtype, anew: bool = False) -> tuple[Tensor, Tensor]:
    """The halves of ``kv_b_proj`` as batches of products: queries into the latent space [H, L, nope], and values out of
    it [H, v, L].

    Made again, in the same memory, when the weight has changed; compiled code and captured graphs read what is there,
    which loading a state and the next pass from Python bring up to date. anew: make them again where changes cannot be
    told, of weights made in inference mode.
    """
    layer = module.kv_b_proj
    kept: Kept | None = module.__dict__.get(KEPT)
    if not still(layer.weight.device):
        if kept is None or kept.halves[0].dtype is not dtype:
            return _halves(module, dtype)
        _is_read(kept.key)
        return kept.halves
    scale = None if layer.weight.dtype in FLOATS else _scale_of(layer)
    unseen = layer.weight.is_inference()
    state = (*_state(layer.weight), *_state(scale))
    if kept is None or kept.state != state or kept.halves[0].dtype is not dtype or (anew and unseen):
        made = _halves(module, dtype)
        if kept is not None and kept.fits(made):
            if kept.read and not unseen:
                _say(module)
            for old, new in zip(kept.halves, made, strict=True):
                old.copy_(new)
            kept.state = state
        else:
            kept = module.__dict__[KEPT] = Kept(made, state)
    return kept.halves


def _state(t: Tensor | None) -> tuple[int, int]:
    """Which memory, and how often it was written to."""
    return (0, 0) if t is None else (t.data_ptr(), 0 if t.is_inference() else t._version)


def _say(module: nn.Module) -> None:
    cls = type(module).__name__
    warn_once(
        f"absorbed {cls}",
        "%s: kv_b_proj has changed: compiled code and captured graphs that decoded since then, without a pass from Python "
        "before, used the former weights",
        cls,
    )


def watch_loading(module: Any) -> None:
    """Have the halves follow a state that is loaded, at once: then no compiled code uses the former ones."""

    def loaded(module: Any, *_: Any) -> None:
        kept = module.__dict__.get(KEPT)
        if kept is not None:
            kept.read, read = False, kept.read  # nothing ran in between
            absorbed(module, kept.halves[0].dtype, True)
            module.__dict__[KEPT].read = read

    # of the attention module itself, whose children have been loaded then; a copy of the model has it too
    module.__dict__[LOADING] = module.register_load_state_dict_post_hook(loaded)


def _halves(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    layer = module.kv_b_proj
    with torch.inference_mode(False), torch.no_grad():  # so that they can be written to in any mode later
        weight, scale = layer.weight, None if layer.weight.dtype in FLOATS else _scale_of(layer)
        if scale is not None:
            blocks = hasattr(layer, "weight_scale_inv")
            weight = dequantised(weight, scale) if blocks else weight.float() * scale.reshape(-1, 1)
        both = weight.to(dtype).view(-1, module.qk_nope_head_dim + module.v_head_dim, module.kv_lora_rank)
        of_k, of_v = both.split((module.qk_nope_head_dim, module.v_head_dim), 1)
        return of_k.transpose(1, 2).contiguous(), of_v.contiguous()


def _scale_of(layer: Any) -> Tensor:
    """The scales of FP8 weights: of blocks, or of rows."""
    found: Tensor = layer.weight_scale_inv if hasattr(layer, "weight_scale_inv") else layer.weight_scale
    return found


def reads(layer: Any) -> bool:
    """Whether the weight of a ``kv_b_proj`` is one that `absorbed` can read."""
    if hasattr(layer, "_hf_hook") or type(layer.weight.data) is not Tensor:  # elsewhere until it is called, or shards
        return False
    plain = type(layer) is nn.Linear and layer.weight.dtype in FLOATS
    return plain or isinstance(layer, BlockFp8Linear) or isinstance(quantised_linear(layer), Meaning)


def projected(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [B, S, H·(nope + rope)] by the projections a module has, and latents with rotated keys [B, S, l + rope]."""
    if getattr(self, "q_a_proj", None) is None:
        return self.q_proj(x), self.kv_a_proj_with_mqa(x)
    found = beside.product(self, x)
    if found is None:
        low, latent = self.q_a_proj(x), self.kv_a_proj_with_mqa(x)
    else:
        low, latent = found[0].split(found[1], -1)
    return self.q_b_proj(self.q_a_layernorm(low)), latent


def expanded(self: Any, latent: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [B, L, H, nope + rope] and values [B, L, H, v] of latents [B, L, l] and rotated keys [B, L, rope]."""
    both = self.kv_b_proj(latent).unflatten(-1, (-1, self.qk_nope_head_dim + self.v_head_dim))
    k, v = both.split((self.qk_nope_head_dim, self.v_head_dim), -1)
    shared = rotated.unsqueeze(2).expand(*k.shape[:3], -1)
    return torch.cat((k, shared), -1), v


def forward(cls: type[nn.Module], meaning: Attention, ops: Any = aiter_ops) -> Callable[..., Any]:
    """hidden_states [B, S, N] -> (the same, None), latents in the cache that is given."""
    stock, arguments, scores = cls.forward, arguments_of(cls.forward), Scores(meaning.scale)
    cached = cache_name(stock)
    from .growing import growing  # needs transformers

    @beside.asks
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = arguments(args, kwargs)
        positions, mask = given.get("position_embeddings"), given.get("attention_mask")
        cache = given.get(cached)
        if positions is None or kind_of(mask) == 0 or why_not(self, (hidden_states,), given) is not None:
            return stock(self, hidden_states, **given)
        lead, rope = hidden_states.shape[:2], self.qk_rope_head_dim
        q, latent = projected(self, hidden_states)
        q = q.unflatten(-1, (-1, self.qk_nope_head_dim + rope))
        plain, turning = q.split((self.qk_nope_head_dim, rope), -1)
        latent, shared = latent.split((self.kv_lora_rank, rope), -1)
        latent = self.kv_a_layernorm(latent)
        turning, shared = turned(turning.transpose(1, 2), shared.unsqueeze(1), positions, meaning, ops)
        turning, shared = turning.transpose(1, 2), shared.squeeze(1)
        if cache is not None and mask is None and is_paged(cache):
            layer = cache.layers[self.layer_idx]
            step = layer.write_latents(latent, shared)
            if step.start:
                where = (step.ends, step.page_ends, step.pages, step.last, step.count)
                out = decode(self, layer.latents, where, plain, turning, meaning.scale, ops)
                return self.o_proj(out.view(*lead, -1)), None
        elif cache is not None:
            if lead[1] > 1:  # there before a step is compiled or captured
                absorbed(self, latent.dtype, True)
            layer = growing(cache, self.layer_idx, latent[:, None], mask, None)
            if layer is not None:
                held, where = appended(layer, mask, latent, shared, ops)
                if where is not None:
                    out = decode(self, *where, plain, turning, meaning.scale, ops)
                    return self.o_proj(out.view(*lead, -1)), None
                if held.room is not None:
                    latent, shared = (t.squeeze(1) for t in held.room.seen(0, held.end))
            else:
                hold_together(cache, self.layer_idx, latent, shared)
                latent, shared = (t.squeeze(1) for t in cache.update(latent[:, None], shared[:, None], self.layer_idx))
                if lead[1] == 1 and kind_of(mask) not in (FRESH, FRESH_SPAN):
                    where = tokens_of(mask, latent, shared, together(cache, self.layer_idx))
                    out = decode(self, *where, plain, turning, meaning.scale, ops)
                    return self.o_proj(out.view(*lead, -1)), None
                if kind_of(mask) in (FRESH, FRESH_SPAN):
                    latent, shared = latent[:, : lead[1]], shared[:, : lead[1]]
        k, v = (t.transpose(1, 2) for t in expanded(self, latent, shared))
        out = attend(torch.cat((plain, turning), -1), k, v, mask, scores, ops)
        return self.o_proj(out.reshape(*lead, -1)), None

    return forward


def decode(
    self: Any, latents: Tensor, where: tuple[Any, ...], plain: Tensor, turned: Tensor, scale: float, ops: Any
) -> Tensor:
    """Attention of the new tokens to all of a cache in the latent space; [B·S, H, v].

    latents: [pages, page, latent + rope]. where: the ends of queries, of pages, the pages, the tokens of the last page
    of each sequence, and the queries of each, as `mla_decode` takes them.
    """
    into, out_of = absorbed(self, plain.dtype)
    flat = plain.flatten(0, 1).transpose(0, 1)
    q = torch.cat((ops.bmm_a16w16(flat, into, None, True), turned.flatten(0, 1)), -1)
    found = q.new_empty(*q.shape[:2], into.shape[1])
    ops.mla_decode(q, latents, found, *where, scale, latents.shape[1])
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
