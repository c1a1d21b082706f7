"""Provider ``triton``: our kernels for AMD and NVIDIA GPUs, one room a family, kernels and launchers side by side."""

from collections.abc import Callable
from typing import Any

from aiter_ops.core.provider import Provider, Requirements
from aiter_ops.core.schema import Signature


def _around(sig: Signature, run: Callable[..., Any]) -> Callable[..., Any]:
    from .repeat import around  # imports Triton

    return around(sig, run)


PROVIDER = Provider(
    "triton",
    Requirements(vendors=(), gpu=True, triton=("3.4", None)),
    package=__name__,
    imports="triton",
    around=_around,
)
