"""Triton as a compiler for GPUs that are not here: a driver that names the target and starts nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def compiling(backend: str, arch: str | int, wave_size: int) -> Iterator[None]:
    """Make Triton's active driver one that only names a target: ``hip`` and ``gfx942``, or ``cuda`` and 90."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import driver

    class CompileOnly(DriverBase):  # type: ignore[misc]
        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError("nothing is launched")

        def get_current_target(self) -> Any:
            return GPUTarget(backend, arch, wave_size)

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            raise NotImplementedError("nothing is launched")

        def get_current_device(self) -> str:
            # Triton keeps compiled kernels by device, and takes the target as a property of it
            return f"{backend} {arch}"

        def get_current_stream(self, device: Any) -> int:
            return 0

    before, collects = driver._active, gc.isenabled()
    driver.set_active(CompileOnly())
    # the compiler makes so many objects that the collector would go through all of torch's again and again
    gc.disable()
    try:
        yield
    finally:
        driver._active = before
        if collects:
            gc.enable()
