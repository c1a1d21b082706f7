"""Compiling Triton kernels for NVIDIA GPUs that are not here, with the tools that Triton's package brings along."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiter_ops.core.platforms import Platform
from aiter_ops.providers.triton.launch import Job

from .aot import compiled_for
from .matrix import Formats, dots_in


@dataclass(frozen=True)
class NvidiaReport:
    """What one compilation came to. registers: a thread's; stack: bytes a thread keeps in memory, spills among them;
    shared: bytes a program keeps in shared memory; matrix: PTX's matrix instructions.
    """

    kernel: str
    constants: tuple[Any, ...]
    num_warps: int
    registers: int
    stack: int
    shared: int
    dots: tuple[Formats, ...]
    matrix: tuple[str, ...]


def compile_nvidia(job: Job, target: Platform) -> NvidiaReport:
    """Compile one job for `target` (an NVIDIA platform). Raises what the compiler raises."""
    import triton

    compiled = compiled_for(job, target)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", done.stdout))
    return NvidiaReport(
        kernel=job.kernel.__name__,
        constants=job.constants,
        num_warps=job.num_warps,
        registers=int(used["REG"]),
        stack=int(used["STACK"]) + int(used["LOCAL"]),
        shared=compiled.metadata.shared,
        dots=dots_in(compiled.asm["ttir"]),
        matrix=tuple(
            sorted(set(re.findall(r"\b((?:wgmma\.mma_async|mma)\.sync\.aligned\.[\w.]+)", compiled.asm["ptx"])))
        ),
    )
