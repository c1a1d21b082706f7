"""vLLM's Triton kernels for MLA decoding and for sampling, cut out of its sources."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from .common import need
from .cut_out import functions_of
from .registry import Call, Kwargs, peer
from .sampling import cut
from .sequences import Latents

DECODE = "v1/attention/ops/triton_decode_attention.py"
CUT = "v1/sample/ops/topk_topp_triton.py"
DRAW = "v1/worker/gpu/sample/gumbel.py"

LEAST_WORK, PER_UNIT = 512, 2
"""Keys of a split at least, and programs a compute unit at most, as vLLM chooses them"""

WANTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    DECODE: (
        (
            *("tanh", "_fwd_grouped_kernel_stage1", "_fwd_kernel_stage2", "_decode_grouped_att_m_fwd"),
            *("_decode_softmax_reducev_fwd", "decode_attention_fwd_grouped"),
        ),
        (),
    ),
    CUT: (
        ("_update_min_larger_stats", "_topk_topp_kernel", "apply_top_k_top_p_triton"),
        (
            *("_TRITON_TABLE_CACHE", "_TRITON_BUFFER_CACHE"),
            *("_NORMAL_CDF_TO_SIGMA_TABLE", "_PERCENTILE_TO_STD_TABLE"),
        ),
    ),
    DRAW: (("tl_rand64", "gumbel_block_argmax", "_gumbel_sample_kernel", "gumbel_sample"), ("_FP32_TINY",)),
}
"""By file, the functions and the constants that are wanted of it"""

SOURCES: dict[str, Any] = {}


def load_vllm_attention(folder: Path) -> bool:
    """Whether any of the three files is in vLLM's `folder`; the peers of the others are left out."""
    import triton
    import triton.language as tl

    given = {"torch": torch, "triton": triton, "tl": tl, "Any": Any, "HAS_TRITON": True, "is_hip_": False}
    given |= {"next_power_of_2": triton.next_power_of_2, "num_compute_units": units}
    for file, (names, constants) in WANTED.items():
        if (folder / file).is_file():
            SOURCES.update(functions_of(folder / file, names, given, constants))
    return any((folder / file).is_file() for file in WANTED)


def units(index: int | None = None) -> int:
    return int(torch.cuda.get_device_properties(index or 0).multi_processor_count)


def source(name: str, file: str) -> Any:
    need(name in SOURCES, f"vLLM's {file} was not found")
    return SOURCES[name]


def splits_of(most: int, device: torch.device) -> int:
    ideal = max(1, most // LEAST_WORK)
    most_splits = PER_UNIT * units(device.index) if device.type == "cuda" else 1
    return min(1 << (ideal - 1).bit_length(), most_splits)


def decode(kw: Kwargs) -> tuple[Call, torch.Tensor]:
    """A call that writes to ``out``, and the lse [B, H] it fills."""
    of = Latents(kw)
    op = source("decode_attention_fwd_grouped", DECODE)
    need(of.q.dtype == torch.bfloat16, "bf16 queries only")
    of.need_narrow()
    splits = splits_of(of.most, of.q.device)
    parts = torch.empty(of.batch, of.heads, splits, of.value + 1, dtype=torch.float32, device=of.q.device)
    lse = torch.empty(of.batch, of.heads, dtype=torch.float32, device=of.q.device)
    scale = kw.get("kv_scale")
    scale = torch.ones((), dtype=torch.float32, device=of.q.device) if scale is None else scale
    args = (of.q, of.cache, of.cache[..., : of.value], kw["out"], lse, of.table, of.lengths, parts, splits, of.scale)
    return functools.partial(op, *args, of.page, 0.0, scale, scale, is_mla=True), lse


@peer("mla_decode", "vllm_triton")
def vllm_decode(kw: Kwargs) -> Call:
    return decode(kw)[0]


@peer("mla_decode_lse", "vllm_triton")
def vllm_decode_lse(kw: Kwargs) -> Call:
    call, lse = decode(kw)

    def both() -> torch.Tensor:
        call()
        return lse.t()

    return both


@peer("sample", "vllm_triton")
def vllm_sample(kw: Kwargs) -> Call:
    """Logits made fp32 and divided, cut in place, drawn with Gumbel noise of seeds: as its GPU worker does."""
    top_k, top_p = cut(kw)
    draw, reduce = source("gumbel_sample", DRAW), source("apply_top_k_top_p_triton", CUT)
    logits, temperature, seeds, offsets = kw["logits"], kw["temperature"][:, None], kw["seeds"], kw["offsets"]
    rows = torch.arange(len(logits), dtype=torch.int32, device=logits.device)
    reduce(logits[:1].float(), *(None if t is None else t[:1] for t in (top_k, top_p)))  # its tables, made once

    def call() -> torch.Tensor:
        x = reduce(logits.float() / temperature, top_k, top_p)
        return draw(x, rows, kw["temperature"], seeds, offsets, False)

    return call
