"""Triton's interpreter in place of a GPU: a driver on paper, and what the interpreter has to be kept from."""

from __future__ import annotations

import math
from typing import Any

import torch

LARGEST = 2**17
"""Elements of a tensor up to which a sample is tried: the interpreter takes milliseconds for a block."""


def prepare() -> None:
    """To be called before anything of AITER is imported, in a process with TRITON_INTERPRET=1."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime import interpreter

    class OnPaper(DriverBase):
        """Answers for a GPU that is not here; nothing is ever started by it."""

        def __init__(self) -> None:
            self.launcher_cls = self.utils = None

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_benchmarker(self) -> Any:
            return None

    triton.runtime.driver.set_active(OnPaper())
    # AITER assumes of some numbers what is false for the first program, which compilers make no use of
    interpreter.InterpreterBuilder.create_assume = lambda self, condition: None
    # the interpreter knows these as functions, not as methods
    tl.tensor.floor = lambda x: tl.math.floor(x, _semantic=interpreter.interpreter_semantic)
    stock = interpreter._convert_float

    def convert(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        """The interpreter's own loses a carry when it rounds to FP8."""
        if source in (tl.float32, tl.float16) and target == tl.float8e4nv:
            return torch.from_numpy(values.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return stock(values, source, target, rounding)

    interpreter._convert_float = convert


BEYOND = {"mxfp4_quant": "its kernel negates masks with `not`, which the interpreter takes as Python does"}
"""Ops whose kernels the interpreter gets wrong, with the reason."""


def cannot(error: BaseException) -> str | None:
    """Why an error is the interpreter's or this machine's and says nothing of AITER; None where it may be AITER's."""
    from triton.runtime.errors import InterpreterError

    cause: BaseException = error
    while isinstance(cause, InterpreterError) and cause.__cause__:
        cause = cause.__cause__
    if isinstance(error, InterpreterError) and isinstance(cause, AttributeError):
        return f"Triton's interpreter cannot: {cause}"
    return "asks for a GPU" if "expected a CUDA" in str(error) else None


def too_large(*values: Any) -> bool:
    return any(isinstance(v, torch.Tensor) and math.prod(v.shape) > LARGEST for v in values)
