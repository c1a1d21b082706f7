"""Run by the tests in a process of its own, since Triton's interpreter is chosen before Triton is imported.

Quantisers on rows made to be hard: every midpoint between codes and its neighbours, at many scales; zeros of both
signs, subnormals, the largest numbers, NaN and Inf. Codes, exponents and scales must equal the references' to the bit;
FP8 codes by torch's cast, since the interpreter's own loses a carry.
Prints one JSON line: {"run": count, "wrong": [text, ...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from triton.runtime import interpreter
from triton_in_interpreter import use_torch_fp8_cast

import aiter_ops
from aiter_ops.ops.quant.mx import E2M1_BOUNDS

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def use_exact_fma() -> None:
    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return interpreter.TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    interpreter.InterpreterBuilder.create_fma = create_fma


def midpoints() -> torch.Tensor:
    """Rows [..., 32]: E2M1's midpoints, next numbers beside them and signs, under maxima that give many exponents."""
    bounds = torch.tensor([*E2M1_BOUNDS, 0.5, 1.0, 6.0])
    beside = torch.cat([bounds, bounds.nextafter(torch.tensor(0.0)), bounds.nextafter(torch.tensor(9.0))])
    beside[::3] *= -1
    row = torch.cat([beside, torch.tensor([-0.0, 0.0])])
    rows = []
    for top in (4.0, 4.999, 5.0, 6.0, 6.001, 7.0, 7.999):
        for exponent in (-140, -127, -126, -60, -1, 0, 1, 60, 124):
            block = row.clone()
            block[31] = top
            rows.append(torch.ldexp(block.double(), torch.tensor(exponent)).float())
    return torch.stack(rows).reshape(-1, 96)


def hard_rows(width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(14, width, generator=generator) * 3
    x[1, 5], x[2, 7], x[3, 9] = float("nan"), float("inf"), -float("inf")
    x[4], x[5, 3] = 0.0, -0.0
    x[6], x[7], x[8], x[9] = 1e-38, 1e-40, 3e38, -1e38
    x[10] *= 1e30
    x[11, ::2] = 6.0
    x[12] = torch.arange(width) * 0.5 - width / 4
    return x


def calls() -> Iterator[Call]:
    for rounding in ("floor", "even", "up"):
        for op in ("mxfp4_quant", "mxfp8_quant"):
            yield op, (midpoints(),), {"rounding": rounding}
            yield op, (hard_rows(64),), {"rounding": rounding}
            yield op, (hard_rows(96).half(),), {"rounding": rounding}
    for x in (hard_rows(96), hard_rows(67).half(), hard_rows(256)[4:13], hard_rows(64)[12:13]):
        yield "per_token_quant", (x,), {"dtype": torch.int8}
        yield "per_token_quant", (x,), {"dtype": torch.int8, "scale_upper_bound": torch.tensor([2.0])}
        yield "per_tensor_quant", (x,), {"dtype": torch.int8}
        for scale in (0.01, 0.5, 1e-38, 1e38, float("inf"), float("nan"), -0.25):
            yield "per_tensor_quant_static", (x, torch.tensor([scale])), {"dtype": torch.int8}
    for layout in ("row", "col", "col_tma4"):
        for ue8m0 in (False, True):
            tail = {"scale_layout": layout, "ue8m0": ue8m0, "dtype": torch.float8_e4m3fn}
            yield "group_quant", (hard_rows(96),), {"group_size": 12, **tail}
            yield "group_quant", (hard_rows(128).reshape(2, 7, 128),), {"group_size": 32, **tail}
    for x in (hard_rows(96), hard_rows(67).half()):
        yield "per_token_quant", (x,), {"dtype": torch.float8_e4m3fn}
        yield "per_tensor_quant_static", (x, torch.tensor([0.01])), {"dtype": torch.float8_e4m3fn}
    wide = torch.randn(3, 20001, generator=torch.Generator().manual_seed(2))
    yield "per_token_quant", (wide,), {"dtype": torch.int8}
    yield "per_tensor_quant", (wide,), {"dtype": torch.int8}
    yield "group_quant", (wide[:, :20000],), {"group_size": 20000, "dtype": torch.float8_e4m3fn}
    for q in (torch.randint(0, 256, (6, 33), dtype=torch.uint8), torch.randint(0, 256, (2, 5, 48), dtype=torch.uint8)):
        for group in (3, 22, 32):
            groups = -(-q.shape[-1] * 2 // group)
            exponents = torch.randint(0, 256, (*q.shape[:-1], groups), dtype=torch.uint8)
            yield "dequant", (q, exponents), {"group_size": group}
    blocks = torch.randint(-128, 128, (3, 70, 50), dtype=torch.int8)
    yield "dequant", (blocks, torch.rand(3, 3, 4)), {"block_rows": 32, "group_size": 16, "out_dtype": torch.float16}


def differs(got: torch.Tensor, want: torch.Tensor) -> bool:
    if got.shape != want.shape or got.dtype != want.dtype or (got.numel() > 1 and got.stride() != want.stride()):
        return True
    if got.dtype.itemsize == 1 and got.is_floating_point():
        got, want = got.float(), want.float()
    same = got == want
    return not bool((same | (got.isnan() & want.isnan()) if got.is_floating_point() else same).all())


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    use_exact_fma()
    use_torch_fp8_cast()
    wrong, count = [], 0
    for name, args, named in calls():
        op = aiter_ops.get_op(name)
        got, want = op.as_tuple(op.on("triton")(*args, **named)), op.as_tuple(op.reference(*args, **named))
        count += 1
        for result, g, w in zip(op.results, got, want, strict=True):
            if differs(g, w):
                wrong.append(f"{name} {list(args[0].shape)} {named}: {result} differs in {int((g != w).sum())} places")
    print(json.dumps({"run": count, "wrong": wrong}))


if __name__ == "__main__":
    main()
