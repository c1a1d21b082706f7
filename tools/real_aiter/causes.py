"""Why numbers of the real AITER on an NVIDIA GPU are not the references': each cause as a reference of its own, which gives
those numbers to the bit.

python tools/real_aiter/causes.py docs/aiter-on-nvidia.md   (all samples, the large ones too: a minute)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aiter_ops.core.op import get_op
from aiter_ops.core.samples import Sample
from aiter_ops.ops.gemm.mx import mxfp4_values
from aiter_ops.ops.quant.mx import mxfp4_codes

ONE = 127
"""The E8M0 code of 1"""


def saturated(e8m0: Tensor) -> Tensor:
    """AITER's ``exponent.to(uint8) + 127`` where a negative number becomes 0, as NVIDIA's conversion has it; AMD's converts
    to a signed integer, whose low byte is right.
    """
    return torch.where(e8m0 < ONE, ONE, e8m0)


def mxfp4_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    packed, e8m0 = mxfp4_codes(x, "even")
    return packed, saturated(e8m0)


def mxfp4_product(a: Tensor, b: Tensor, b_scale: Tensor, **kwargs: Any) -> Tensor:
    """a · bᵀ with a rounded to MXFP4 so; batches too, and their turned results."""
    y = mxfp4_values(*mxfp4_quant(a)) @ mxfp4_values(b, b_scale).transpose(-1, -2)
    return y.transpose(0, 1) if kwargs.get("transpose_bm") else y


def grouped_product(x: Tensor, w: Tensor, w_scale: Tensor, group_size: int = 128, **kwargs: Any) -> Tensor:
    """x quantised as x · (1 / scale), not x / scale: some codes are their neighbours."""
    groups = x.float().unflatten(-1, (-1, group_size))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-10) * (1 / torch.tensor(torch.finfo(w.dtype).max))
    codes = (groups * (1 / scale)).clamp(-448, 448).to(w.dtype).float()
    parts = w.float().unflatten(-1, (-1, group_size))
    y = sum(codes[..., i, :] @ parts[..., i, :].transpose(1, 2) * scale[..., i, :] for i in range(parts.shape[-2]))
    y = y * w_scale
    return y.transpose(0, 1) if kwargs.get("transpose_bm") else y


CAUSES: dict[str, Any] = {
    "mxfp4_quant": mxfp4_quant,
    "gemm_a16wfp4": mxfp4_product,
    "bmm_a16wfp4": mxfp4_product,
    "bmm_a8w8_group_prequant": grouped_product,
}

_WRONG = re.compile(r"- `(\w+)`, (.*): wrong, (\w+)(?:\[([\d, ]+)\]: got (\S+), want (\S+)|: (\d+) of (\d+) differ)")


class Wrong(NamedTuple):
    """A line of the page. at: of the worst number, which was `got`; or so many that `differ`."""

    op: str
    sample: str
    at: tuple[int, ...]
    got: float
    differ: int


def wrong_on(page: str) -> Iterator[Wrong]:
    """What the page's table of the GPU says was wrong."""
    text = page.split("<!-- begin gpu -->")[1].split("<!-- end gpu -->")[0]
    for op, sample, _, at, got, _, differ, _ in _WRONG.findall(text.split("Under public evidence")[0]):
        place = tuple(int(i) for i in at.split(",")) if at else ()
        yield Wrong(op, sample, place, float(got or 0), int(differ or 0))


def explained(found: Wrong, sample: Sample) -> bool:
    """Whether the cause gives the number on the page."""
    cause, op = CAUSES[found.op], get_op(found.op)
    args = [t.bfloat16() if found.op.endswith("wfp4") and i == 0 and t.dtype == torch.float32 else t
            for i, t in enumerate(sample.args)]  # fmt: skip
    kwargs = {**sample.kwargs, "prequant": True} if found.op.endswith("wfp4") else dict(sample.kwargs)
    if found.differ:
        return int((cause(args[0])[1] != op.reference(*args)[1]).sum()) == found.differ
    dtype = kwargs.get("out_dtype") or args[0].dtype
    return float(cause(*args, **kwargs).to(dtype)[found.at]) == found.got


def check(page: str, size: str | None = None) -> Iterator[tuple[Wrong, bool]]:
    """Every wrong number of an op with a cause, and whether that is it. size: of the samples, None: any."""
    for found in wrong_on(page):
        if found.op not in CAUSES:
            continue
        name = found.sample.removesuffix(", prequant").removesuffix(", in bfloat16")
        sample = next((s for s in get_op(found.op).samples(size=size) if s.name == name), None)
        if sample is not None:
            yield found, explained(found, sample)


if __name__ == "__main__":
    right = True
    for found, same in check(Path(sys.argv[1]).read_text(encoding="utf-8")):
        print("explained" if same else "NOT explained", found.op, found.sample)
        right &= same
    sys.exit(not right)
