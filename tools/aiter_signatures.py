"""Write tests/data/aiter_signatures.json: the signatures of the AITER functions our adapters call, release by release.

    python tools/aiter_signatures.py path/to/aiter.git > tests/data/aiter_signatures.json

The argument is a clone of https://github.com/ROCm/aiter with its tags. Nothing of it is imported or run: the sources
of each tag are parsed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys

TAGS = [
    "0.1.5",
    "0.1.5.post1",
    "0.1.5.post2",
    "0.1.5.post3",
    "0.1.5.post4",
    "0.1.6",
    "0.1.6.post1",
    "0.1.6.post2",
    "0.1.6.post3",
    "0.1.7",
    "0.1.7.post1",
    "0.1.7.post2",
    "0.1.7.post3",
    "0.1.7.post4",
    "0.1.7.post5",
    "0.1.8",
    "0.1.9",
    "0.1.9.post1",
    "0.1.10",
    "0.1.10.post1",
    "0.1.10.post2",
    "0.1.10.post3",
    "0.1.11",
    "0.1.11.post1",
    "0.1.12",
    "0.1.12.post1",
    "0.1.12.post2",
    "0.1.13",
    "0.1.13.post1",
    "0.1.14",
    "0.1.14.post1",
    "0.1.15",
    "0.1.15.post1",
    "0.1.15.post2",
    "0.1.15.post3",
    "0.1.16",
    "0.1.16.post1",
    "0.1.16.post2",
    "0.1.16.post3",
    "0.1.16.post4",
    "0.1.16.post5",
    "0.1.16.post6",
    "0.1.17",
    "0.1.18",
    "0.1.19",
    "0.1.19.post1",
    "0.1.19.post2",
    "0.1.20",
    "0.1.20.post1",
]

FUNCTIONS = {
    "aiter.ops.rmsnorm": (
        "rmsnorm",
        "rmsnorm2d_fwd",
        "rmsnorm2d_fwd_with_add",
        "rmsnorm2d_fwd_with_dynamicquant",
        "rmsnorm2d_fwd_with_add_dynamicquant",
    ),
    "aiter.ops.norm": ("layernorm2d_fwd",),
    "aiter.ops.activation": ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"),
    "aiter.ops.quant": (
        "per_group_quant_hip",
        "dynamic_per_token_scaled_quant",
        "dynamic_per_tensor_quant",
        "static_per_tensor_quant",
        "per_1x32_f4_quant_hip",
        "per_1x32_mx_quant_hip",
    ),
    "aiter.ops.fused_qk_rmsnorm_group_quant": (
        "fused_qk_rmsnorm",
        "fused_qk_rmsnorm_group_quant",
        "fused_qk_rmsnorm_per_token_quant",
    ),
    "aiter.ops.triton.activation": ("act_mul_and_fp8_group_quant",),
    "aiter.ops.triton.fused_add_rmsnorm_pad": ("fused_add_rmsnorm_pad",),
    "aiter.ops.triton.normalization.fused_add_rmsnorm_pad": ("fused_add_rmsnorm_pad",),
    "aiter.ops.triton.fused_fp8_quant": ("fused_rms_fp8_group_quant", "fused_rms_fp8_per_tensor_static_quant"),
    "aiter.ops.triton.quant.fused_fp8_quant": (
        "fused_rms_fp8_group_quant",
        "fused_rms_fp8_per_tensor_static_quant",
        "fused_rms_gated_fp8_group_quant",
    ),
    "aiter.ops.triton.quant": ("dynamic_mxfp4_quant",),
    "aiter.ops.triton.quant.quant": ("dynamic_mxfp4_quant",),
    "aiter.ops.gemm_op_a8w8": (
        "gemm_a8w8_CK",
        "gemm_a8w8_bpreshuffle",
        "gemm_a8w8_blockscale",
        "gemm_a8w8_blockscale_bpreshuffle",
    ),
    "aiter.ops.gemm_op_a4w4": ("gemm_a4w4",),
    **{
        f"{package}.{name}": (name,)
        for name in ("gemm_a16w16", "gemm_a8wfp4", "gemm_a16wfp4", "gemm_afp4wfp4")
        for package in ("aiter.ops.triton", "aiter.ops.triton.gemm.basic")
    },
    **{
        f"{package}.{name}": (name,)
        for name in (
            "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant",
            "batched_gemm_a16wfp4",
            "batched_gemm_bf16",
        )
        for package in ("aiter.ops.triton", "aiter.ops.triton.gemm.batched")
    },
    "aiter.ops.moe_op": ("topk_softmax", "topk_sigmoid"),
    "aiter.ops.topk": ("topk_gating", "grouped_topk", "moe_fused_gate", "biased_grouped_topk_hip"),
    "aiter.mla": ("mla_decode_fwd",),
    "aiter.ops.triton.gather_kv_b_proj": ("gather_kv_b_proj",),
    "aiter.fused_moe": ("fused_moe",),
    "aiter.fused_moe_bf16_asm": ("asm_moe_tkw1",),
    "aiter.ops.shuffle": ("shuffle_weight", "shuffle_weight_a16w4", "shuffle_scale_a16w4"),
    "aiter.utility.fp4_utils": ("e8m0_shuffle",),
    "aiter.ops.mha": ("flash_attn_varlen_func", "flash_attn_varlen_fp8_pertensor_func"),
    "aiter.ops.triton.unified_attention": ("unified_attention",),
    "aiter.ops.triton.attention.unified_attention": ("unified_attention",),
    **dict.fromkeys(
        ("aiter.ops.triton.rope", "aiter.ops.triton.rope.rope"),
        ("rope_cached_thd_positions_2c_fwd_inplace", "rope_cached_thd_positions_offsets_2c_fwd_inplace"),
    ),
    "aiter.ops.cache": ("reshape_and_cache", "reshape_and_cache_flash", "concat_and_cache_mla"),
    "aiter.ops.triton.fused_kv_cache": ("fused_qk_rope_reshape_and_cache",),
    "aiter.ops.triton.fusions.fused_kv_cache": ("fused_qk_rope_reshape_and_cache",),
    "aiter.ops.sample": ("greedy_sample",),
}


def source(clone: str, tag: str, module: str) -> str | None:
    """The text of a module file at a tag; packages (``__init__.py``) only re-export and are passed over."""
    path = module.replace(".", "/") + ".py"
    done = subprocess.run(["git", "-C", clone, "show", f"v{tag}:{path}"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def parameters(function: ast.FunctionDef) -> list[list[str | None]]:
    """[name, default as text or None, kind] of each parameter; kind is ``pos`` or ``kw``."""
    args = function.args
    if args.vararg or args.kwarg or args.posonlyargs:
        raise SystemExit(f"{function.name}: *args, **kwargs and positional-only parameters are not expected")
    missing: list[ast.expr | None] = [None] * (len(args.args) - len(args.defaults))
    result: list[list[str | None]] = []
    for kind, names, defaults in (
        ("pos", args.args, missing + args.defaults),
        ("kw", args.kwonlyargs, args.kw_defaults),
    ):
        result += [[a.arg, d and ast.unparse(d), kind] for a, d in zip(names, defaults, strict=True)]
    return result


def main(clone: str) -> None:
    functions: dict[str, list[list[object]]] = {}
    for tag in TAGS:
        for module, names in FUNCTIONS.items():
            text = source(clone, tag, module)
            defined = {n.name: n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)} if text else {}
            for name in names:
                found = parameters(defined[name]) if name in defined else None
                rows = functions.setdefault(f"{module}:{name}", [])
                if (rows[-1][1] if rows else None) != found:
                    rows.append([tag, found])
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(rows)}" for key, rows in functions.items())
    note = (
        "made by tools/aiter_signatures.py from the tags of https://github.com/ROCm/aiter; a row holds from its tag on"
    )
    print(f'{{"note": {json.dumps(note)},\n "tags": {json.dumps(TAGS)},\n "functions": {{\n{lines}\n }}\n}}')


if __name__ == "__main__":
    main(sys.argv[1])
