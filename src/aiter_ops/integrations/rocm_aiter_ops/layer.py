"""The class with vLLM's name, put together from the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from aiter_ops.core import runtime

from . import later, predicates, schemas
from .enums import ACTIVATIONS, QUANTS, ActivationType, QuantType
from .faces import FACES
from .predicates import flag


class rocm_aiter_ops:
    """vLLM's `vllm._aiter_ops.rocm_aiter_ops` over the ops of this layer: its public names and call forms.

    Operations, predicates and getters come from the tables (`faces`, `predicates.PREDICATES`, `schemas.GETTERS`,
    `later.LATER`) and are static methods. They work on any machine; the predicates answer whether vLLM would use
    AITER here.
    """

    @staticmethod
    def why_off(predicate: str, *args: Any, **kwargs: Any) -> str | None:
        """Why a predicate of this class is False here and now, for these arguments of it; None where it is True.

        ValueError for other names, TypeError where the answer depends on arguments that are not given.
        """
        return predicates.why_off(predicate, *args, **kwargs)

    @staticmethod
    def refresh_env_variables() -> None:
        """Read the environment again (`aiter_ops.reload_settings`); every choice is made anew. Nothing is written."""
        runtime.reload_settings()

    @staticmethod
    def register_ops_once() -> None:
        """Register vLLM's torch ops; see `schemas.register_ops_once`."""
        schemas.register_ops_once()

    @staticmethod
    def get_moe_dispatch_policy() -> int:
        """VLLM_ROCM_AITER_MOE_DISPATCH_POLICY, an int on every machine."""
        return int(flag("VLLM_ROCM_AITER_MOE_DISPATCH_POLICY"))

    @staticmethod
    def get_fused_moe_situv2_activation() -> str:
        """a4w4, a8w4 or a16w4, as VLLM_ROCM_USE_AITER_MOE_SITUV2 says."""
        value = flag("VLLM_ROCM_USE_AITER_MOE_SITUV2")
        return {"auto": "a4w4", "1": "a4w4", "0": "a16w4"}.get(value, value)

    @staticmethod
    def get_aiter_activation_type(activation_str: str) -> ActivationType | None:
        """AITER's number for no, none, silu, gelu, swiglu or situ; None for another text, as vLLM's."""
        return ACTIVATIONS.get(activation_str.strip().lower())

    @staticmethod
    def get_aiter_quant_type(quant_type_str: str) -> QuantType | None:
        """AITER's number for no, per_tensor, per_token, per_1x32, per_1x128 or per_128x128; None for another text."""
        return QUANTS.get(quant_type_str.strip().lower())


for _face in FACES:
    for _name in _face.methods:
        setattr(rocm_aiter_ops, _name, staticmethod(_face.fn))
_made: tuple[tuple[Iterable[str], Callable[[str], Callable[..., object]]], ...] = (
    (predicates.PREDICATES, predicates.method),
    (schemas.GETTERS, schemas.getter),
    (later.LATER, later.method),
)
for _names, _make in _made:
    for _name in _names:
        setattr(rocm_aiter_ops, _name, staticmethod(_make(_name)))
