"""The FP8 linear layer: its stock formulas, its two formats, and what moves and casts do to it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import aiter_ops
from aiter_ops.integrations.transformers import kernelize
from aiter_ops.integrations.transformers.block_fp8 import (
    BlockFp8Experts,
    BlockFp8Linear,
    decoded,
    dequantised,
    in_format,
)

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def example(rows: int = 200, columns: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(rows, columns, generator=generator) * 100).clamp(-448, 448).to(FN)
    return weight, torch.rand(-(-rows // 128), -(-columns // 128), generator=generator) / 1000


def test_every_code_of_both_formats_is_decoded() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for dtype in (FN, FNUZ):
        torch.testing.assert_close(
            decoded(codes.view(dtype)), codes.view(dtype).float(), equal_nan=True, rtol=0, atol=0
        )


def test_blocks_are_scaled_one_by_one() -> None:
    weight, scale = example()
    want = torch.stack(
        [torch.stack([weight[i, j].float() * scale[i // 128, j // 128] for j in range(256)]) for i in range(200)]
    )
    assert torch.equal(dequantised(weight, scale), want)
    odd = weight[:, :200]
    assert torch.equal(dequantised(odd, scale), want[:, :200])


def test_every_code_keeps_its_value_in_fnuz() -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(2, 128).view(FN)
    scale = torch.tensor([[0.25]])
    codes, doubled = in_format(weight, scale, FNUZ)
    assert codes.dtype == FNUZ
    got, want = codes.float() * doubled, weight.float() * scale
    torch.testing.assert_close(got, want + 0.0, equal_nan=True, rtol=0, atol=0)
    assert in_format(weight, scale, FN) == (weight, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_is_close_to_the_unquantised_product(dtype: torch.dtype) -> None:
    weight, scale = example()
    bias = torch.randn(200).to(dtype)
    x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 0] = 0
    layer = BlockFp8Linear(weight, scale, bias)
    y = layer(x)
    want = x.double() @ dequantised(weight, scale).double().t() + bias.double()
    assert y.dtype == dtype
    # FP8 rounds each activation by at most 2^-4 of itself, and the errors of 256 columns are independent
    spread = 2.0**-4 * (x.double().square() @ dequantised(weight, scale).double().square().t()).sqrt()
    assert bool(((y.double() - want).abs() <= 4 * spread + 2.0**-7 * want.abs()).all())
    assert torch.equal(y[0, 0], bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ops_take_the_place_of_the_layer(dtype: torch.dtype) -> None:
    layer = nn.Sequential(BlockFp8Linear(*example(), torch.linspace(-1, 1, 200, dtype=dtype)))
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    stock = layer(x)
    report = kernelize(layer)
    assert [(r.path, r.op) for r in report.replaced] == [("0", "gemm_a8w8_blockscale"), ("0", "group_quant")]
    with aiter_ops.record() as calls:
        ours = layer(x)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, stock, rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-5, atol=2.0**-8)
    assert [(c.op, c.count) for c in calls] == [("group_quant", 1), ("gemm_a8w8_blockscale", 1)]


def test_a_cast_leaves_codes_and_scales_alone() -> None:
    layer = BlockFp8Linear(*example(), torch.zeros(200))
    before = layer.weight.clone(), layer.weight_scale_inv.clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == FN
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight.view(torch.uint8), before[0].view(torch.uint8))
    assert torch.equal(layer.weight_scale_inv, before[1])
    assert set(layer.state_dict()) == {"weight", "weight_scale_inv", "bias"}
    codes = torch.stack([before[0], before[0]]), torch.stack([before[1], before[1]])
    experts = BlockFp8Experts(codes, codes, "silu").half()
    assert {p.dtype for p in experts.parameters()} == {FN, torch.float32}
