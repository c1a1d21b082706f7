"""The exact merge of attention over two parts of the keys."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from aiter_ops.core.checks import bad_dtype, bad_shape
from aiter_ops.core.op import op
from aiter_ops.core.samples import Make, Sample
from aiter_ops.ops import formulas as f

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def samples(make: Make) -> Iterator[Sample]:
    def parts(tokens: int, heads: int, size: int, dtype: torch.dtype = BF16) -> tuple[Tensor, ...]:
        """Two states; lse far apart, alike and -inf on either side and on both."""
        found: list[Tensor] = []
        for side in (0, 1):
            out, lse = make.normal(tokens, heads, size, dtype=dtype), make.normal(heads, tokens, dtype=FP32, scale=4.0)
            if lse.numel() > 7 and not lse.is_meta:
                lse.view(-1)[3 + side :: 7] = -torch.inf
                lse.view(-1)[6::7] = -torch.inf
            found += [out, lse]
        return tuple(found)

    # strides of either part are its own; the peak of one row would not do for another
    (a, lse_a, *_), (b, *_) = parts(23, 3, 44, FP32), parts(23, 5, 40, FP32)
    *_, lse_b = parts(25, 3, 40, FP32)
    far = make.permutation(69).sub(34).mul(10).view(3, 23)
    lse_a, lse_b = lse_a + far, lse_b[:, :23].add_(far)
    yield Sample("fp32 23x3x40", (a[..., :40], lse_a, b[:, :3], lse_b))
    yield Sample("decode 1x8x128", parts(1, 8, 128))
    yield Sample("fp16 17x2x96", parts(17, 2, 96, FP16))
    a, lse_a, b, lse_b = parts(7, 4, 64)
    a[0, 0], b[0, 1] = torch.nan, torch.inf
    if not lse_a.is_meta:
        lse_a[0, 0] = lse_b[1, 0] = -torch.inf
    yield Sample("nothing of a part without keys", (a, lse_a, b, lse_b))
    a, lse_a, b, lse_b = parts(6, 3, 80, FP16)
    strided = a.transpose(0, 1).contiguous().transpose(0, 1), lse_a.t().contiguous().t(), b, lse_b
    yield Sample("strided 6x3x80", strided)
    wide, lse_a, b, lse_b = parts(5, 8, 40)
    yield Sample("sliced 5x4x37", (wide[:, ::2, 3:], lse_a[::2], b[:, :4, :37], lse_b[4:]))
    yield Sample("zero rows", parts(0, 4, 64))
    yield Sample("DeepSeek-V3 4096x16x128", parts(4096, 16, 128), size="model")
    yield Sample("Llama-3-8B 64x32x128", parts(64, 32, 128), size="model")


def _check(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    name = "merge_attn_states"
    if out_a.dtype not in f.FLOATS:
        raise bad_dtype(name, "out_a", out_a.dtype, f.FLOATS)
    if out_a.dim() != 3 or 0 in out_a.shape[1:]:
        raise bad_shape(name, "out_a", out_a, "[T, H, Dv] with H, Dv >= 1")
    f.same(name, "out_b", out_b, "out_a", out_a)
    tokens, heads, _ = out_a.shape
    for of, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        if lse.dtype != FP32:
            raise bad_dtype(name, of, lse.dtype, (FP32,))
        if tuple(lse.shape) != (heads, tokens):
            raise bad_shape(name, of, lse, f"[{heads}, {tokens}]: [H, T]")


@op(
    "attention",
    samples=samples,
    results=("out", "lse"),
    inline=True,
    check=_check,
    flops=lambda out_a, *rest: 3 * out_a.numel(),
)
def merge_attn_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """One softmax over the keys of both, from softmaxes over two disjoint sets of keys (arXiv:2501.01005, section 2.2).

    out_a, out_b [T, H, Dv]: bf16, fp16 or fp32, both of one dtype; lse_a, lse_b [H, T] fp32: natural logarithms of
    their denominators. Any strides. A part whose lse is -inf had no keys and adds nothing, whatever its out holds.
    A sink belongs to one of the two at most.
    Returns out in their dtype, exp(lse_a - lse) · out_a + exp(lse_b - lse) · out_b in fp32, rounded once, and
    lse = log(exp(lse_a) + exp(lse_b)), fp32; zeros and -inf where both are -inf. NaN gives NaN; an lse of +inf is not
    defined. Raises TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    top = torch.maximum(lse_a, lse_b)
    base = torch.where(top == -torch.inf, 0.0, top)
    a, b = torch.exp(lse_a - base), torch.exp(lse_b - base)
    total = a + b
    share = torch.where(total == 0.0, 1.0, total)
    terms = []
    for weight, out in ((a, out_a), (b, out_b)):
        w = (weight / share).t()[..., None]
        terms.append(torch.where(w == 0.0, 0.0, w * out.float()))
    return (terms[0] + terms[1]).to(out_a.dtype), base + torch.log(total)
