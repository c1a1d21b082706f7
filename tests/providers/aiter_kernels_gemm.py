"""AITER's matrix products and shuffles in PyTorch: what the stand-in package computes, with the limits they check."""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.evidence import version_key
from aiter_ops.core.platforms import Platform
from aiter_ops.ops import formulas as f
from aiter_ops.ops.layout import scale_shuffled, scale_unshuffled, shuffled, unshuffled
from aiter_ops.ops.quant.dequant import mxfp4_values
from aiter_ops.ops.quant.mx import mxfp4_quant

HALF = (torch.bfloat16, torch.float16)


def _flat(*tensors: Tensor) -> None:
    assert all(t.is_contiguous() for t in tensors)
    assert all(t.dim() == 2 for t in tensors)


class GemmKernels:
    """One method a function; parameters by the names that the adapters rely on."""

    def __init__(self, machine: Platform) -> None:
        assert machine.aiter is not None
        self.release, self.machine = version_key(machine.aiter), machine

    # --- 16 bits

    def gemm_a16w16(self, x, w, dtype, y, config, activation, bias=None, skip_reduce=False, **newer):
        _flat(x, w)
        assert x.dtype in HALF
        assert y is config is activation is None
        assert not skip_reduce
        product = x.float() @ w.float().t()
        return (product if bias is None else product + bias.float()).to(dtype)

    # --- 8 bits

    def _codes(self, XQ: Tensor, WQ: Tensor, dtype: torch.dtype) -> Tensor:
        _flat(XQ, WQ)
        assert XQ.dtype == WQ.dtype
        assert XQ.dtype in (torch.int8, self.machine.fp8_dtype)
        assert dtype in HALF
        assert XQ.shape[1] % 16 == WQ.shape[0] % 8 == 0, "Composable Kernel does not support this problem"
        return (XQ.double() @ WQ.double().t()).float()

    def gemm_a8w8_CK(self, XQ, WQ, x_scale, w_scale, bias, dtype, splitK):
        product = self._codes(XQ, WQ, dtype)
        assert splitK == 0
        assert x_scale.shape == (len(XQ), 1)
        assert w_scale.shape == (1, len(WQ))
        _flat(x_scale, w_scale)
        y = product * x_scale * w_scale
        if bias is None:
            return y.to(dtype)
        assert bias.dtype == dtype
        return (y + bias.float()).to(dtype)

    def gemm_a8w8_bpreshuffle(self, XQ, WQ, x_scale, w_scale, bias, dtype, check):
        assert XQ.dtype != torch.int8, "shuffled int8 goes to assembly"
        assert bias is None
        assert not check
        assert XQ.shape[1] >= 192
        assert XQ.shape[1] % 64 == 0
        return self.gemm_a8w8_CK(XQ, unshuffled(WQ, "shuffled_16x16"), x_scale, w_scale, None, dtype, 0)

    def gemm_a8w8_blockscale(self, XQ, WQ, x_scale, w_scale, dtype, isBpreshuffled=False):
        self._codes(XQ, WQ, dtype)
        _flat(x_scale, w_scale)
        assert not isBpreshuffled
        k, n = XQ.shape[1], len(WQ)
        x = XQ.float() * x_scale.repeat_interleave(128, 1)[:, :k]
        blocks = w_scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
        return (x @ (WQ.float() * blocks).t()).to(dtype)

    def gemm_a8w8_blockscale_bpreshuffle(self, XQ, WQ, x_scale, w_scale, dtype, out=None):
        assert out is None
        by_column = x_scale.view(x_scale.shape[1], x_scale.shape[0]).t().contiguous()
        return self.gemm_a8w8_blockscale(XQ, unshuffled(WQ, "shuffled_16x16"), by_column, w_scale, dtype)

    # --- MXFP4

    def gemm_a8wfp4(self, x, w, y, x_scales, w_scales, dtype, config):
        _flat(x, w, y, x_scales, w_scales)
        assert x.dtype == torch.float8_e4m3fn
        assert config is None
        assert y.dtype == dtype
        assert x.shape[1] % 256 == 0, "what is beyond K is masked by nothing in particular"
        y.copy_((x.float() @ mxfp4_values(w, w_scales).t()) * x_scales)

    def _quantised(self, x: Tensor) -> Tensor:
        assert x.dtype in HALF
        k = x.shape[-1]
        assert k % 512 == 0 or k in (64, 128, 256), "scales are read beyond K"
        return mxfp4_values(*mxfp4_quant.op.written(x, "even"))

    def gemm_a16wfp4(self, x, w, w_scales, atomic_add, dtype, y, config):
        _flat(x, w, w_scales)
        assert y is config is None
        assert atomic_add is False
        return (self._quantised(x) @ mxfp4_values(w, w_scales).t()).to(dtype)

    def gemm_afp4wfp4(self, x, w, x_scales, w_scales, dtype, y, config, skip_reduce=False):
        _flat(x, w, x_scales, w_scales)
        assert y is config is None
        assert not skip_reduce
        return (mxfp4_values(x, x_scales) @ mxfp4_values(w, w_scales).t()).to(dtype)

    def gemm_a4w4(self, A, B, A_scale, B_scale, bias, dtype, alpha, beta, bpreshuffle, **newer):
        assert bias is None, "dropped by Composable Kernel"
        assert bpreshuffle is True
        assert dtype == torch.bfloat16
        assert not any(v for v in newer.values())
        assert A.dtype == B.dtype == torch.float4_e2m1fn_x2
        assert A_scale.dtype == B_scale.dtype == torch.float8_e8m0fnu
        assert A_scale.shape == (-(-len(A) // 256) * 256, A.shape[1] // 16)
        assert B_scale.shape == (len(B), A.shape[1] // 16)
        assert len(B) % 256 == A.shape[1] % 128 == 0
        a_scale = scale_unshuffled(A_scale.view(torch.uint8), "shuffled_32x8")[: len(A)]
        b_scale = scale_unshuffled(B_scale.view(torch.uint8), "shuffled_32x8")
        w = mxfp4_values(unshuffled(B.view(torch.uint8), "shuffled_16x16"), b_scale)
        return (mxfp4_values(A.view(torch.uint8), a_scale) @ w.t()).to(dtype)

    # --- batched

    def _batched(self, y: Tensor, transpose_bm: bool) -> Tensor:
        b, m, n = y.shape
        return torch.empty((m, b, n) if transpose_bm else (b, m, n), dtype=y.dtype).copy_(
            y.transpose(0, 1) if transpose_bm else y
        )

    def batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant(
        self, X, WQ, w_scale, group_size, bias, dtype, splitK, YQ, transpose_bm, config, transpose_bm_in=False
    ):
        assert splitK is YQ is config is None
        assert not transpose_bm_in
        assert X.dtype in HALF
        assert dtype in HALF
        assert group_size in (32, 64, 128)
        assert WQ.dtype == self.machine.fp8_dtype
        assert w_scale.shape == (1,)
        q, scale = f.quantise_groups(X.float(), group_size, WQ.dtype, "row", False)
        x = q.float() * scale.repeat_interleave(group_size, -1)
        y = torch.einsum("bmk,bnk->bmn", x, WQ.float() * w_scale)
        if bias is not None:
            assert bias.shape == (len(X), 1, WQ.shape[1])
            y = (y.to(bias.dtype) + bias).to(dtype)
        return self._batched(y.to(dtype), transpose_bm)

    def batched_gemm_bf16(self, XQ, WQ, bias, dtype, splitK, YQ, config, **newer):
        assert splitK is YQ is config is None
        assert newer.get("backend") is None
        assert XQ.dtype == WQ.dtype
        assert XQ.dtype in HALF
        assert dtype in HALF
        y = torch.einsum("bmk,bnk->bmn", XQ.float(), WQ.float())
        if bias is not None:
            assert bias.shape == (len(XQ), 1, WQ.shape[1])
            y = y.to(bias.dtype) + bias
        return y.to(dtype)

    def batched_gemm_a16wfp4(self, x, w, w_scales, dtype, y, config, transpose_bm, prequant, y_scale):
        assert y is config is y_scale is None
        assert prequant is True
        y = torch.einsum("bmk,bnk->bmn", self._quantised(x), mxfp4_values(w, w_scales)).to(dtype)
        return self._batched(y, transpose_bm)

    # --- layouts

    def _marked(self, x: Tensor) -> Tensor:
        x.is_shuffled = True  # type: ignore[attr-defined]
        return x

    def shuffle_weight(self, x, layout, use_int4, is_guinterleave=False, gate_up=False, pad_k_to=0):
        assert not any((use_int4, is_guinterleave, gate_up, pad_k_to))
        assert x.is_contiguous()
        return self._marked(shuffled(x, {(16, 16): "shuffled_16x16", (32, 16): "shuffled_32x16"}[layout]))

    def shuffle_weight_a16w4(self, src, NLane, gate_up):
        assert (NLane, gate_up, src.dim()) == (16, True, 3)
        return self._marked(shuffled(src, "shuffled_16x16_gate_up"))

    def e8m0_shuffle(self, scale):
        _flat(scale)
        rows, columns = scale.shape
        padded = scale.new_full((-(-rows // 256) * 256, -(-columns // 8) * 8), 99)
        padded[:rows, :columns] = scale
        return scale_shuffled(padded, "shuffled_32x8")

    def shuffle_scale_a16w4(self, src, experts_cnt, gate_up):
        _flat(src)
        assert gate_up is True
        return scale_shuffled(src.view(experts_cnt, -1, src.shape[1]), "shuffled_32x8_gate_up").view(src.shape)
