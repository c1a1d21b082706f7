"""Recognition of attention: a module's own forward runs on made-up numbers beside the ops, and what it asks transformers'
attention interface for is looked at.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import interface, latent
from .attend import Scores, attend
from .attention import NORMS, attention_forward
from .packed import Attention, References, cache_name
from .recognise import close, forward_of, linear, twin_of

PLAIN, JOINT = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"}
TRIAL = "aiter_ops_trial"
"""Name of the attention implementation that trials run with."""

HIDDEN, BATCH, LENGTH = 64, 2, 7

_asked: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = []
"""What the forward on trial has asked the interface for: tensors, and the rest."""


def attention(module: nn.Module) -> Attention | str | None:
    """What kind of attention `module` is; a reason where it looks like one and computes something else."""
    children = {n for n, m in module._modules.items() if m is not None}
    known = _known(children)
    if known is None and not (children and type(module).__name__.endswith("Attention")):
        return None
    used = interface.stock_of(module)
    if known is None and used is None:
        return "its projections are none of the known kinds"
    if used not in interface.NAMES:
        return f"its attention implementation is {used!r}; {' and '.join(map(repr, interface.NAMES))} are replaced"
    if getattr(module, "is_causal", True) is False:
        return "its attention is not causal"
    if why := interface.missing():
        return why
    if known is None or (known is latent.stubs and not latent.reads(module.kv_b_proj)):
        return _by_code(module)
    try:
        return _tried(module, known(module, HIDDEN))
    except Exception as error:  # a stranger's forward may need more than the trial gives
        found = _by_code(module)
        return found or f"its attention cannot be tried alone ({type(error).__name__})"


def _known(children: set[str]) -> Any:
    if children - NORMS in (PLAIN, JOINT):
        return _plain_stubs
    return latent.stubs if children >= latent.CHILDREN else None


def _by_code(module: nn.Module) -> Attention | str:
    """Attention alone, where the class's forward names the interface."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
        return "its forward does not ask transformers' attention interface"
    if "position_bias" in code.co_varnames:
        return "its attention has a bias on scores"
    return Attention("paged_attention", whole=False)


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if TRIAL in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return

    def asked(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        _asked.append(((q, k, v), kwargs))
        scores = Scores(
            kwargs["scaling"], kwargs.get("sliding_window"), kwargs.get("softcap") or 0.0, kwargs.get("s_aux")
        )
        return attend(q.transpose(1, 2), k, v, None, scores, References()), None

    ALL_ATTENTION_FUNCTIONS.register(TRIAL, asked)


def _tried(module: Any, stubs: dict[str, nn.Module | None]) -> Attention | str:
    """The candidate that agrees with the class's own forward: without a cache, with pages, and going on with what the
    class's forward has put in a cache."""
    from transformers.cache_utils import DynamicCache

    from .pages import PagedCache

    _register()
    cached = cache_name(type(module).forward)
    generator = torch.Generator().manual_seed(9)
    own = {n: torch.randn(p.shape, generator=generator) for n, p in module._parameters.items() if p is not None}
    twin = twin_of(module, own, {n: m if m is None else _on_cpu(m) for n, m in stubs.items()})
    config = copy.copy(module.config)
    setattr(config, interface.INTERNAL, TRIAL)
    twin.__dict__.update({"layer_idx": 0, "training": False, "config": config})
    x = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator)
    width = getattr(module, "qk_rope_head_dim", None) or module.head_dim
    found: Attention | None = None
    for angles, positions in _positions(width, generator):
        if found is not None and angles != found.angles:
            continue
        _asked.clear()
        try:
            want = forward_of(twin, x, position_embeddings=positions, attention_mask=None, **{cached: None})[0]
        except Exception:  # another form of angles, or fewer columns than it turns
            continue
        if len(_asked) != 1:
            return "its forward does not ask transformers' attention interface once"
        seen = _meaning(module, twin, angles, *_asked[0])
        if isinstance(seen, str):
            return seen
        candidates = [seen, *_others(seen)] if found is None else [found]
        for meaning in candidates:
            ours = attention_forward(twin, meaning, References())
            last = slice(LENGTH - 1, LENGTH)
            with torch.no_grad():
                stored, pages = DynamicCache(), PagedCache(1, BATCH, LENGTH, References())
                first = {"position_embeddings": _part(positions, slice(0, LENGTH - 1)), "attention_mask": None}
                then = {"position_embeddings": _part(positions, last), "attention_mask": None}
                forward_of(twin, x[:, :-1], **first, **{cached: stored})
                got = [
                    ours(twin, x, position_embeddings=positions, attention_mask=None)[0],
                    ours(twin, x[:, :-1], **first, **{cached: pages})[0],
                    *(ours(twin, x[:, last], **then, **{cached: c})[0] for c in (stored, pages)),
                ]
            parts = (want, want[:, :-1], want[:, last], want[:, last])
            if all(close(g, w) for g, w in zip(got, parts, strict=True)):
                found = meaning
                break
        else:
            return "its attention computes something else than the known kinds"
    return found or "its attention cannot be tried alone"


def _positions(width: int, generator: torch.Generator) -> Iterator[tuple[str, Any]]:
    """Angles in every form, and fewer than a head has columns."""
    for columns in (width, width // 2):
        angle = torch.randn(BATCH, LENGTH, columns // 2, generator=generator)
        cos, sin = angle.cos(), angle.sin()
        yield "full", (torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))
        if columns == width:
            yield "half", (cos, sin)
            yield "complex", torch.complex(cos, sin)


def _part(positions: Any, part: slice) -> Any:
    return positions[:, part] if isinstance(positions, Tensor) else tuple(t[:, part] for t in positions)


def _meaning(
    module: Any, twin: Any, angles: str, tensors: tuple[Tensor, ...], asked: dict[str, Any]
) -> Attention | str:
    """What the interface was asked for."""
    if more := sorted(n for n, v in asked.items() if n not in interface.KNOWN and v is not None):
        return f"its attention is given {', '.join(more)}"
    sinks = asked.get("s_aux")
    if sinks is not None and sinks is not twin._parameters.get("sinks"):
        return "its attention has sinks that are no parameter of its own"
    if sinks is None and module._parameters:
        return "its attention has more tensors"
    op = "mla_decode" if "kv_b_proj" in module._modules else "paged_attention"
    window, softcap = asked.get("sliding_window"), asked.get("softcap") or 0.0
    scale = float(asked["scaling"])
    return Attention(op, {}, True, scale, window, softcap, sinks is not None, angles=angles)


def _others(meaning: Attention) -> Iterator[Attention]:
    yield replace(meaning, is_neox=False)
    yield replace(meaning, apart=True)


def _plain_stubs(module: Any, hidden: int) -> dict[str, nn.Module | None]:
    """Small projections of the module's own heads: all of them where it has a tensor for each, else two groups."""
    config = module.config
    groups = module.num_key_value_groups
    joint = "qkv_proj" in module._modules
    keys = config.num_key_value_heads if joint or module._parameters else 2
    sizes = {
        "q_proj": keys * groups * module.head_dim,
        "k_proj": keys * module.head_dim,
        "v_proj": keys * module.head_dim,
    }
    made: dict[str, nn.Module | None] = {n: linear(hidden, size, i) for i, (n, size) in enumerate(sizes.items())}
    out = linear(sizes["q_proj"], hidden, 3)
    if joint:
        made = {"qkv_proj": linear(hidden, sum(sizes.values()), 4)}
    norms = {n: m for n, m in module._modules.items() if n in NORMS}
    return {**made, **norms, "o_proj": out}


def _on_cpu(module: nn.Module) -> nn.Module:
    """A norm with its parameters in fp32 on the CPU; layers of the trial are there already."""
    if isinstance(module, nn.Linear):
        return module
    own = dict(module.named_parameters(recurse=False))
    return twin_of(module, {n: p.detach().float().cpu() for n, p in own.items()}, {})
