"""What the plugin puts in place of what, as data: nothing here imports vLLM.

Each row is checked against the installed vLLM before anything is replaced: the target is there and is called as
written here, or the engine stops with the difference.
"""

from __future__ import annotations

from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from aiter_ops.integrations.rocm_aiter_ops.later import LATER
from aiter_ops.integrations.rocm_aiter_ops.predicates import PREDICATES
from aiter_ops.integrations.rocm_aiter_ops.schemas import GETTERS, ROWS
from aiter_ops.integrations.rocm_aiter_ops.table import FACES

WINDOW = SpecifierSet(">=0.31.0,<0.33")
"""The releases of vLLM that the engine tests run with; in any other the plugin registers nothing."""

ROCM, CUDA, CPU = "rocm", "cuda", "cpu"
LAYERS = "vllm.model_executor.layers"
EVERY = (ROCM, CUDA, CPU)


class Override(NamedTuple):
    """One thing of vLLM's that is served by the layer.

    kind: which of vLLM's mechanisms puts it there, a key of `INSTALLERS`. name: what vLLM calls it. of: ops of the
    layer. mode: 1, or all. on: vLLM's platforms. where: ``module:attribute`` of the target, where it has one, whose
    parameters are `takes` (None: not asked). note: for the user.
    """

    kind: str
    name: str
    of: tuple[str, ...]
    mode: str = "1"
    on: tuple[str, ...] = EVERY
    where: str = ""
    takes: tuple[str, ...] | None = None
    note: str = ""


INSTALLERS = {
    "IR provider": "ir",
    "IR order": "ir",
    "CustomOp": "custom_ops",
    "linear kernel": "linear",
    "attention backend": "backends",
    "MLA prefill backend": "backends",
    "experts": "experts",
    "class method": "aiter_class",
    "torch op": "aiter_class",
}
"""Kind -> the module of this package whose ``install(rows, platform)`` puts it in place."""

X = ("x",)
ROPE = ("positions", "query", "key")
ROPE_CLASSES = {
    "RotaryEmbedding": "base",
    "DynamicNTKAlphaRotaryEmbedding": "dynamic_ntk_alpha_rope",
    "DynamicNTKScalingRotaryEmbedding": "dynamic_ntk_scaling_rope",
    "LinearScalingRotaryEmbedding": "linear_scaling_rope",
    "Llama3RotaryEmbedding": "llama3_rope",
    "NTKScalingRotaryEmbedding": "ntk_scaling_rope",
    "YaRNScalingRotaryEmbedding": "yarn_scaling_rope",
}
"""Classes that turn alike and differ in how they make the table of angles -> their modules."""

IR = (
    Override(
        *("IR provider", "rms_norm", ("rms_norm",)),
        where="vllm.ir.ops.layernorm:rms_norm",
        takes=("x", "weight", "epsilon", "variance_size"),
    ),
    Override(
        *("IR provider", "fused_add_rms_norm", ("add_rms_norm",)),
        where="vllm.ir.ops.layernorm:fused_add_rms_norm",
        takes=("x", "x_residual", "weight", "epsilon", "variance_size"),
    ),
    Override(
        *("IR provider", "gelu_and_mul_sparse", ("gelu_and_mul", "gelu_tanh_and_mul")),
        where="vllm.ir.ops.activation:gelu_and_mul_sparse",
        takes=("x", "std_multiplier", "approximate"),
        note="served where --ir-op-priority.gelu_and_mul_sparse=aiter_ops asks for it",
    ),
    Override(
        *("IR order", "Platform.get_default_ir_op_priority", ()),
        where="vllm.platforms:current_platform.get_default_ir_op_priority",
        takes=("vllm_config",),
        note="puts the layer first for both norms; --ir-op-priority still comes before it. Also adds the layer to the key "
        "of vLLM's compiled graphs",
    ),
)

CUSTOM_OPS = (
    *(
        Override("CustomOp", name, of, where=f"{LAYERS}.activation:{name}.forward_native", takes=X)
        for name, of in (
            ("SiluAndMul", ("silu_and_mul",)),
            ("SiluAndMulWithClamp", ("silu_and_mul",)),
            ("GeluAndMul", ("gelu_and_mul", "gelu_tanh_and_mul")),
            ("SwigluOAIAndMul", ("swiglu_oai_and_mul",)),
        )
    ),
    *(
        Override(
            *("CustomOp", name, ("rotary_embedding",)),
            where=f"{LAYERS}.rotary_embedding.{module}:{name}.forward_cuda",
            takes=("self", *ROPE),
        )
        for name, module in ROPE_CLASSES.items()
    ),
    Override(
        *("CustomOp", "MRotaryEmbedding", ("mrope", "rotary_embedding")),
        where=f"{LAYERS}.rotary_embedding.mrope:MRotaryEmbedding.forward_cuda",
        takes=("self", *ROPE, "offsets"),
    ),
    Override(
        *("CustomOp", "QuantFP8", ("per_token_quant", "per_tensor_quant", "per_tensor_quant_static", "group_quant")),
        where=f"{LAYERS}.quantization.input_quant_fp8:QuantFP8.forward_cuda",
        takes=("self", "x", "scale", "scale_ub", "use_triton"),
    ),
    Override(
        *("CustomOp", "GroupedTopk", ("grouped_topk", "biased_grouped_topk")),
        where=f"{LAYERS}.fused_moe.router.grouped_topk_router:GroupedTopk.forward_cuda",
        takes=("self", "hidden_states", "gating_output", "e_score_correction_bias"),
    ),
)

KERNELS = "vllm.model_executor.kernels.linear"
LINEAR = (
    Override(
        *("linear kernel", "fp8", ("gemm_a8w8",)),
        where=f"{KERNELS}:FP8ScaledMMLinearKernel.apply_scaled_mm",
        takes=("self", "A", "B", "out_dtype", "As", "Bs", "bias", "output_shape"),
        note="last in vLLM's order: VLLM_DISABLED_KERNELS names those before it",
    ),
    Override(
        *("linear kernel", "int8", ("gemm_a8w8", "per_token_quant", "per_tensor_quant_static")),
        where=f"{KERNELS}.scaled_mm.cutlass:CutlassInt8ScaledMMLinearKernel.apply_weights",
        takes=("self", "layer", "x", "bias"),
        note="last in vLLM's order: VLLM_DISABLED_KERNELS names those before it",
    ),
    Override(
        *("linear kernel", "block fp8", ("gemm_a8w8_blockscale",), "all"),
        where=f"{KERNELS}:Fp8BlockScaledMMLinearKernel.apply_block_scaled_mm",
        takes=("self", "A", "B", "As", "Bs"),
        note="first in the table _POSSIBLE_FP8_BLOCK_KERNELS, for which vLLM has no hook",
    ),
)

REGISTRY = "vllm.v1.attention.backends.registry:AttentionBackendEnum"
ATTENTION_OPS = ("paged_attention", "reshape_and_cache")
MLA_OPS = ("mla_decode", "mla_decode_lse", "concat_and_cache_mla", "flash_attn_varlen", "flash_attn_varlen_lse")
ASKED = "asked for by --attention-backend CUSTOM; which of the two a model gets follows from the model"
ONLY = "the CPU platform asks for this one and no other"
BACKENDS = (
    Override("attention backend", "CUSTOM", ATTENTION_OPS, where=f"{REGISTRY}.CUSTOM", note=ASKED),
    Override("attention backend", "CUSTOM (MLA)", MLA_OPS, where=f"{REGISTRY}.CUSTOM", note=ASKED),
    Override("attention backend", "CPU_ATTN", ATTENTION_OPS, on=(CPU,), where=f"{REGISTRY}.CPU_ATTN", note=ONLY),
    Override("attention backend", "CPU_MLA", MLA_OPS, on=(CPU,), where=f"{REGISTRY}.CPU_MLA", note=ONLY),
    Override(
        *("MLA prefill backend", "CUSTOM", ("flash_attn_varlen", "flash_attn_varlen_lse")),
        where="vllm.v1.attention.backends.mla.prefill.registry:MLAPrefillBackendEnum.CUSTOM",
        note='comes with the MLA backend; alone: --attention-config \'{"mla_prefill_backend": "CUSTOM"}\'',
    ),
    *(
        Override("attention backend", name, of, "all", (ROCM,), f"{REGISTRY}.{name}")
        for name, of in (
            ("ROCM_AITER_FA", ATTENTION_OPS),
            ("ROCM_AITER_UNIFIED_ATTN", ATTENTION_OPS),
            ("ROCM_AITER_MLA", MLA_OPS),
            ("ROCM_AITER_TRITON_MLA", MLA_OPS),
        )
    ),
)

EXPERTS = tuple(
    Override(
        *("experts", f"oracle.{oracle}.backend_to_kernel_cls", ("fused_moe",), "all"),
        where=f"{LAYERS}.fused_moe.oracle.{oracle}:backend_to_kernel_cls",
        takes=("backend",),
        note="the layer's experts come first wherever weights are plain; vLLM has no hook for them",
    )
    for oracle in ("unquantized", "fp8")
)

AITER = "vllm._aiter_ops:rocm_aiter_ops"
NOT_METHODS = frozenset((*PREDICATES, *GETTERS, *LATER, "gemm_a8w8", "triton_rotary_embed"))
"""Names that stay vLLM's: its questions, its getters (fusion patterns look for the ops they return), what the layer
does not have, and what only our class has."""

METHODS = tuple(
    Override("class method", name, face.of, "all", (ROCM,), f"{AITER}.{name}")
    for face in FACES
    for name in face.methods
    if name not in NOT_METHODS
)
TORCH_OPS = tuple(Override("torch op", f"vllm::{row.op}", row.of, "all", (ROCM,)) for row in ROWS.values() if row.of)

OVERRIDES: tuple[Override, ...] = (*IR, *CUSTOM_OPS, *LINEAR, *BACKENDS, *EXPERTS, *METHODS, *TORCH_OPS)

NEW_IN_033 = frozenset(
    (
        *("topk_gating", "gather_kv_b_proj", "triton_gemm_a8w8_blockscale_preshuffle"),
        *(f"vllm::{ROWS[row].op}" for row in range(36, 41) if row in ROWS),
    )
)
"""Names that vLLM has from 0.33 on: absent in the window, and no error there."""


def in_window(version: str) -> bool:
    """Whether a release of vLLM is one the engine tests run with; a build of it (``+cpu``) is."""
    try:
        return WINDOW.contains(Version(version).public, prereleases=False)
    except InvalidVersion:
        return False


def selected(mode: str, platform: str) -> tuple[Override, ...]:
    """The rows for a value of AITER_OPS_VLLM on one of vLLM's platforms."""
    modes = {"0": (), "1": ("1",), "all": ("1", "all")}[mode]
    return tuple(row for row in OVERRIDES if row.mode in modes and platform in row.on)
