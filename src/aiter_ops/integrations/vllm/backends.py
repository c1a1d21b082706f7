"""Which attention backend stands where. vLLM has one name for a backend of ours, CUSTOM, and two kinds of attention."""

from __future__ import annotations

from typing import Any

from .table import Override

ATTENTION = f"{__package__}.attention.AiterOpsBackend"
MLA = f"{__package__}.mla.AiterOpsMLABackend"
PREFILL = f"{__package__}.mla.AiterOpsMLAPrefillBackend"
EITHER = f"{__name__}.CustomBackend"
"""Not a class: vLLM looks the name up in this module when it builds a layer, see `__getattr__`."""


def __getattr__(name: str) -> Any:
    """CustomBackend: the MLA backend for a model with MLA, else the other one."""
    if name != "CustomBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    if config is not None and config.model_config is not None and config.model_config.use_mla:
        from .mla import AiterOpsMLABackend

        return AiterOpsMLABackend
    from .attention import AiterOpsBackend

    return AiterOpsBackend


def install(rows: list[Override], platform: str) -> None:
    from vllm.v1.attention.backends.mla.prefill.registry import MLAPrefillBackendEnum, register_mla_prefill_backend
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    for row in rows:
        member = row.name.partition(" ")[0]
        if row.kind == "MLA prefill backend":
            register_mla_prefill_backend(MLAPrefillBackendEnum[member], PREFILL)
        elif member == "CUSTOM":
            register_backend(AttentionBackendEnum.CUSTOM, EITHER)
        else:
            register_backend(AttentionBackendEnum[member], MLA if "mla_decode" in row.of else ATTENTION)
