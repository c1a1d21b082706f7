"""Provider ``triton``: our kernels for AMD and NVIDIA GPUs, one room a family, kernels and launchers side by side."""

from aiter_ops.core.provider import Provider, Requirements

PROVIDER = Provider(
    "triton",
    Requirements(vendors=(), gpu=True, triton=("3.4", None)),
    package=__name__,
    imports="triton",
)
