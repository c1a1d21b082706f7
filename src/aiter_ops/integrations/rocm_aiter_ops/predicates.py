"""vLLM's questions about what is on: each a list of conditions, of which the first that fails is the reason."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from aiter_ops.core import platforms, provider, runtime
from aiter_ops.core.platforms import Platform
from aiter_ops.core.settings import VLLM_DEFAULTS

from . import tuned

Condition = Callable[[Platform], "str | None"]
"""None, or why not."""

CDNA = ("gfx942", "gfx950", "gfx1250")
RDNA4 = ("gfx1200", "gfx1201")
"""The architectures vLLM runs AITER on, and those where it runs a part of it."""


def flag(name: str) -> str:
    """The value of a vLLM flag in lower case, its default in vLLM where it is unset."""
    return dict(runtime.settings().flags_set).get(name, VLLM_DEFAULTS[name])


def _present(p: Platform) -> str | None:
    if p.vendor != "amd":
        return f"no AMD GPU here ({p.name})"
    if p.aiter is None:
        return p.aiter_fault or "AITER (distribution amd-aiter) is not installed"
    return None


def _archs(accepted: tuple[str, ...]) -> Condition:
    def check(p: Platform) -> str | None:
        return _present(p) or (None if p.arch in accepted else f"{p.arch} is none of {', '.join(accepted)}")

    return check


def _has(feature: str) -> Condition:
    """The AITER here has what provider aiter calls so (`doctor` lists them)."""

    def check(p: Platform) -> str | None:
        features = provider.get_provider("aiter").features
        lacking = features(p).get(feature, "") if features else ""
        return f"AITER {p.aiter} has no {feature}: {lacking}" if lacking else None

    return check


def _on(name: str) -> Condition:
    def check(p: Platform) -> str | None:
        if flag(name) in ("1", "true"):
            return None
        given = dict(runtime.settings().flags_set).get(name)
        return f"{name} is unset, which is off" if given is None else f"{name}={given} turns it off"

    return check


def _never(reason: str) -> Condition:
    return lambda p: reason


def _later(op: str) -> Condition:
    return _never(f"the layer has no {op} yet")


SUPPORTED, ON_RDNA4 = _archs(CDNA), _archs(RDNA4)
FLAG = "VLLM_ROCM_USE_AITER"
MASTER = (SUPPORTED, _on(FLAG))
LINEAR = (*MASTER, _on(f"{FLAG}_LINEAR"))
MOE = (*MASTER, _on(f"{FLAG}_MOE"))
GFX950, CDNA34 = _archs(("gfx950",)), _archs(("gfx942", "gfx950"))
SITU = (*MOE, _later("SiTUv2 MoE"))


class Predicate(NamedTuple):
    """conditions: all must hold. parameters: names of further arguments with their defaults (no entry: required).
    sizes: a condition on these arguments too, or None where the answer does not depend on them.
    """

    conditions: tuple[Condition, ...]
    parameters: tuple[str, ...] = ()
    defaults: tuple[Any, ...] = ()
    keyword_only: bool = False
    sizes: Callable[..., str | None] | None = None

    @property
    def signature(self) -> inspect.Signature:
        kind = inspect.Parameter.KEYWORD_ONLY if self.keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        required = len(self.parameters) - len(self.defaults)
        defaults = (*[inspect.Parameter.empty] * required, *self.defaults)
        return inspect.Signature(
            [inspect.Parameter(n, kind, default=d) for n, d in zip(self.parameters, defaults, strict=True)]
        )


def _tuned(sizes: Callable[..., str | None], *parameters: str) -> Predicate:
    return Predicate((_present,), parameters, sizes=sizes)


PREDICATES = {
    "is_enabled": Predicate(MASTER),
    "is_rdna_aiter_enabled": Predicate((ON_RDNA4, _on(FLAG))),
    "is_rdna_linear_enabled": Predicate((ON_RDNA4, _on(FLAG), _on(f"{FLAG}_LINEAR"))),
    "is_linear_enabled": Predicate(LINEAR),
    "is_linear_fp8_enabled": Predicate(LINEAR),
    "is_fused_moe_enabled": Predicate(MOE),
    "is_fusion_moe_shared_experts_enabled": Predicate((*MOE, _on(f"{FLAG}_FUSION_SHARED_EXPERTS"))),
    "is_fused_moe_situv2_enabled": Predicate(SITU),
    "is_fused_moe_situv2_gate_up_interleaved": Predicate(SITU),
    "topk_softmax_supports_fused_sigmoid": Predicate((_never("topk_softmax appends no columns of shared experts"),)),
    "fuse_sigmoid_in_kernel": Predicate(
        (_never("topk_softmax appends no columns of shared experts"),), ("aiter_topK_meta_data",)
    ),
    "is_mla_enabled": Predicate((*MASTER, _on(f"{FLAG}_MLA"))),
    "mla_decode_supports_non_causal": Predicate(()),
    "is_mha_enabled": Predicate((*MASTER, _on(f"{FLAG}_MHA"))),
    "is_custom_all_reduce_enabled": Predicate((*MASTER, _on(f"{FLAG}_CUSTOM_AR"), _later("all_reduce_rms_norm"))),
    "is_shuffle_kv_cache_enabled": Predicate((SUPPORTED, _on("VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT"))),
    "fused_qknorm_idxrqknorm_enabled": Predicate(
        (*MASTER, _later("qknorm_idxrqknorm")), ("kv_cache_dtype", "k_scale", "v_scale"), (None, None)
    ),
    "is_triton_unified_attn_enabled": Predicate((*MASTER, _on(f"{FLAG}_UNIFIED_ATTENTION"))),
    "is_fp8bmm_enabled": Predicate((*MASTER, _on(f"{FLAG}_FP8BMM"))),
    "is_fp4bmm_enabled": Predicate((*MASTER, _on(f"{FLAG}_FP4BMM"), GFX950)),
    "is_linear_hipbmm_enabled": Predicate((*LINEAR, _on(f"{FLAG}_LINEAR_HIPBMM"))),
    "is_asm_fp4_gemm_dynamic_quant_enabled": Predicate((*MASTER, _on(f"{FLAG}_FP4_ASM_GEMM"), GFX950)),
    "is_triton_rotary_embed_enabled": Predicate((*MASTER, _on(f"{FLAG}_TRITON_ROPE"))),
    "is_triton_sparse_mla_enabled": Predicate(
        (*MASTER, _on(f"{FLAG}_TRITON_SPARSE_MLA"), GFX950, _later("sparse MLA"))
    ),
    "is_triton_gemm_enabled": Predicate((*MASTER, _on(f"{FLAG}_TRITON_GEMM"))),
    "is_tgemm_enabled": Predicate((*LINEAR, GFX950)),
    "are_gdn_triton_kernels_available": Predicate((*MASTER, _later("gated delta rule"))),
    "is_gdn_flydsl_prefill_available": Predicate((*MASTER, _later("gated delta rule"))),
    "is_rdna_gdn_triton_kernels_available": Predicate((ON_RDNA4, _on(FLAG), _later("gated delta rule"))),
    "fused_moe_supports_gate_mode": Predicate((SUPPORTED, _has("gate mode of fused experts"))),
    "fused_moe_supports_quant_dtype_a": Predicate(
        (_never("activations of MXFP4 experts stay in 16 bits, whatever the AITER here takes"),)
    ),
    "fused_moe_supports_heterogeneous_shared_expert": Predicate(
        (_never("fused_moe refuses shared experts"),), ("num_tokens",)
    ),
    "is_topk_gating_enabled": Predicate((*MOE, CDNA34)),
    "is_asm_fp4_gemm_supported": Predicate((*MASTER, GFX950)),
    "is_flydsl_quick_reduce_available": Predicate((*MASTER, _later("custom all-reduce"))),
    "is_kda_gluon_prefill_available": Predicate((*MASTER, _later("Kimi delta attention"))),
    "is_kda_gluon_decode_available": Predicate((*MASTER, _later("Kimi delta attention"))),
    "is_indexer_top_k_enabled": Predicate((*MASTER, GFX950, _later("sparse attention indexer"))),
    "is_indexer_top_k_supported": Predicate(
        (*MASTER, GFX950, _later("sparse attention indexer")),
        ("is_prefill", "compress_ratio", "num_rows", "max_valid_seq_len", "topk_tokens"),
        (None, None),
        keyword_only=True,
    ),
    "is_triton_blockscale_bpreshuffle_gemm_tuned": Predicate((SUPPORTED,), ("n", "k"), sizes=tuned.blockscale_shuffled),
    "is_asm_fp4_gemm_tuned": _tuned(tuned.fp4, "n", "k_bytes"),
    "is_triton_gemm_w8a8_tuned": _tuned(tuned.blockscale, "n", "k"),
    "is_triton_gemm_afp4wfp4_presh_ws_tuned": _tuned(tuned.fp4_shuffled, "n", "k_bytes"),
    "is_shuffled_per_token_w8a8_gemm_tuned": _tuned(tuned.per_token_shuffled, "N", "K", "q_dtype_w"),
    "is_per_token_w8a8_gemm_tuned": _tuned(tuned.per_token, "N", "K", "q_dtype_w"),
}
"""vLLM's name -> what it takes to be True."""


def why_off(name: str, *args: Any, **kwargs: Any) -> str | None:
    """Why a predicate of `PREDICATES` is False here and now, or None where it is True. The rest: its arguments, which
    are needed where the answer depends on them (TypeError).
    """
    if name not in PREDICATES:
        raise ValueError(f"{name!r} is no predicate; known: {', '.join(PREDICATES)}")
    predicate, machine = PREDICATES[name], platforms.platform()
    given = predicate.signature.bind(*args, **kwargs) if args or kwargs or predicate.sizes else None
    reasons = (check(machine) for check in predicate.conditions)
    reason = next((text for text in reasons if text), None)
    if reason is None and predicate.sizes and given:
        return predicate.sizes(machine, **given.arguments)
    return reason


def method(name: str) -> Callable[..., bool]:
    """The predicate as a function with vLLM's parameters, which returns True or False and nothing else."""
    signature = PREDICATES[name].signature

    def ask(*args: Any, **kwargs: Any) -> bool:
        signature.bind(*args, **kwargs)
        return why_off(name, *args, **kwargs) is None

    ask.__name__, ask.__signature__ = name, signature  # type: ignore[attr-defined]
    ask.__doc__ = f"Whether it is on; `rocm_aiter_ops.why_off({name!r})` says why not."
    return ask


# --- functions of vLLM's module ---------------------------------------------------------------------------------------


def is_aiter_found() -> bool:
    """Whether AMD's AITER (distribution amd-aiter) is installed; another package called aiter does not count."""
    return platforms.platform().aiter is not None


def is_aiter_found_and_supported() -> bool:
    """Whether AITER is installed on a GPU that vLLM runs it on; no flag is asked."""
    return SUPPORTED(platforms.platform()) is None


def is_aiter_found_and_supported_on_rdna4() -> bool:
    """The same for RDNA4."""
    return ON_RDNA4(platforms.platform()) is None


def if_aiter_supported(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: `func` where `is_aiter_found_and_supported`, else False (vLLM's returns None)."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs) if is_aiter_found_and_supported() else False

    return wrapper
