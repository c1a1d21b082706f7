"""Changes of meaning between AITER's releases that no call fails on, and what the adapters do about each.

Read in AITER's sources at the releases named. Of entries that no adapter calls there is no row.
"""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """From `release` on, `entry` means something else by the same call.

    parameter: the one concerned, where there is one. given: adapters always give it by name, so neither its place nor
    its default matters (held by a test). shown: whether a signature or schema shows the change; what it does not show
    only the release's number tells.
    """

    entry: str
    release: str
    was: str
    now: str
    adapter: str
    parameter: str | None = None
    given: bool = False
    shown: bool = True


MEANINGS = (
    Meaning(
        "grouped_topk",
        "0.1.5",
        "the name of the scoring function",
        "a truth value in its place, so that any name means softmax",
        "is_softmax is given by name, as a bool",
        "is_softmax",
        given=True,
    ),
    Meaning(
        "dynamic_per_token_scaled_quant",
        "0.1.5",
        "scales are shuffled by default",
        "they are not",
        "shuffle_scale is given by name",
        "shuffle_scale",
        given=True,
    ),
    Meaning(
        "per_1x32_f4_quant_hip",
        "0.1.4",
        "codes and scales are shuffled by default",
        "they are not",
        "shuffle is given by name",
        "shuffle",
        given=True,
    ),
    Meaning(
        "per_1x32_f4_quant_hip",
        "0.1.16",
        "scales are rounded down to a power of two",
        "they are rounded up where amax is past the largest code",
        "the op's rounding is refused where it is the other one",
        shown=False,
    ),
    Meaning(
        "per_1x32_mx_quant_hip",
        "0.1.16",
        "scales are rounded down to a power of two",
        "they are rounded up where amax is past the largest code",
        "served since 0.1.16",
        shown=False,
    ),
    Meaning(
        "gemm_a8w8_bpreshuffle",
        "0.1.6.post2",
        "the result is fp16 by default",
        "it is bf16",
        "dtype is given by name",
        "dtype",
        given=True,
    ),
    Meaning(
        "gemm_a4w4",
        "0.1.9",
        "the fifth argument is the result, written in place",
        "it is the bias, and the result is allocated",
        "shuffled weights are served since 0.1.9, and bias and dtype by name only",
        "dtype",
        given=True,
    ),
    Meaning(
        "flash_attn_varlen_func",
        "0.1.8",
        "window_size is (left, right)",
        "it is (left, right, first keys that every query sees)",
        "two or three numbers by release",
        "window_size",
        given=True,
    ),
    Meaning(
        "mla_decode_fwd",
        "0.1.10.post2",
        "sm_scale follows max_seqlen_q",
        "page_size and nhead_kv stand between them, so that a scale by position is a page size",
        "everything after the tensors is given by name",
        "sm_scale",
        given=True,
    ),
    Meaning(
        "mla_decode_fwd",
        "0.1.13",
        "return_lse is taken and the LSE left unwritten",
        "it is written",
        "mla_decode_lse is served since 0.1.13",
        "return_lse",
        shown=False,
    ),
    Meaning(
        "fused_moe",
        "0.1.10.post2",
        "plain weights are read as what they are",
        "weights without the attribute is_shuffled go to other kernels, which read shuffled bytes as plain ones",
        "only shuffled weights are given, on an alias with the mark",
        shown=False,
    ),
    Meaning(
        "fused_moe",
        "0.1.17",
        "swiglu_limit of 0.0 is no limit, and the default",
        "None is the default, and means 7 for swiglu",
        "swiglu is refused; for other activations it has no effect",
        "swiglu_limit",
    ),
    Meaning(
        "fused_moe",
        "0.1.19",
        "gate_mode follows swiglu_limit",
        "beta and linear_beta stand between them",
        "everything after the tensors is given by name",
    ),
    Meaning(
        "unified_attention",
        "0.1.15.post1",
        "alibi_slopes follows v_descale",
        "q_scales stands between them",
        "everything after v_descale is given by name",
        "alibi_slopes",
        given=True,
    ),
    Meaning(
        "unified_attention",
        "0.1.15.post1",
        "max_seqlen_q of 1 is an upper bound",
        "with it the b-th sequence is taken to have the b-th row",
        "at least 2 is said where that need not hold",
        "max_seqlen_q",
        given=True,
        shown=False,
    ),
    Meaning(
        "rmsnorm2d_fwd_with_add",
        "0.1.17",
        "the seventh argument is use_model_sensitive_rmsnorm",
        "it is gemma_norm, which adds 1 to the weight",
        "both are given by name, gemma_norm only where it is wanted",
        "use_model_sensitive_rmsnorm",
        given=True,
    ),
    Meaning(
        "biased_grouped_topk_hip",
        "0.1.17",
        "weights are sums with the bias",
        "they are scores without it",
        "served since 0.1.17 where moe_fused_gate cannot",
        shown=False,
    ),
    Meaning(
        "topk_softmax",
        "0.1.5",
        "tensors and numbers have names",
        "they are arg0 to arg4, up to 0.1.5.post3",
        "all five are given by position, in the order of every release",
    ),
)


def of(entry: str) -> tuple[Meaning, ...]:
    return tuple(m for m in MEANINGS if m.entry == entry)
