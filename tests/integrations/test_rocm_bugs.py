"""Defects of vLLM's layer that a face could have taken over, each not reproduced.

The numbers in names are those of the list in docs/rocm-aiter-ops.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import aiter_ops as ops
from aiter_ops.integrations.rocm_aiter_ops import NotHonoured, rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.schemas import GETTERS, ROWS, overload, signature_of

from . import rocm_cases as c

r: Any = rocm_aiter_ops


def test_1_predicates_are_never_none():
    assert r.is_enabled() is False
    assert type(r.get_moe_dispatch_policy()) is int


def test_2_a_scale_of_the_caller_is_not_overwritten():
    scale = torch.full((5, 1), 3.0)
    with pytest.raises(NotHonoured, match="scale"):
        r.per_token_quant(c.X, c.FN, scale)
    assert torch.equal(scale, torch.full((5, 1), 3.0))
    assert not signature_of(ROWS[28]).mutates


def test_3_topk_sigmoid_renormalises_and_numbers():
    weights, ids, numbers = *c.buffers(), torch.full((7, 3), -1, dtype=torch.int32)
    r.topk_sigmoid(weights, ids, numbers, c.LOGITS, True)
    s = torch.sigmoid(c.LOGITS.to(c.D64))
    want, chosen = c.chosen(s, s)
    c.routed((want / want.sum(-1, keepdim=True), chosen))(weights, ids, numbers)


def test_4_a_bias_keeps_its_precision():
    """Two experts whose biases bfloat16 cannot tell apart, with logits in bfloat16."""
    bias = torch.zeros(16)
    bias[3], bias[2] = 1.0 + 2.0**-10, 1.0
    logits, (weights, ids) = torch.zeros(7, 16, dtype=torch.bfloat16), c.buffers(1)
    r.biased_grouped_topk(logits, bias, weights, ids, 4, 4, True)
    assert ids.eq(3).all()
    assert torch.equal(bias.bfloat16()[2], bias.bfloat16()[3])


@pytest.mark.parametrize("groups", [3, 5, 6])
def test_5_any_number_of_groups(groups: int):
    logits, (weights, ids) = c.normal(7, groups * 32), c.buffers(2)
    r.biased_grouped_topk(logits, torch.zeros(groups * 32), weights, ids, groups, groups, False)
    assert torch.equal(ids.long(), logits.topk(2).indices)


def test_6_many_tokens_need_no_renormalisation():
    """AITER changes its kernel with the number of tokens, and one of them asserts renormalisation."""
    logits = c.normal(3000, 16)
    weights, ids = torch.empty(3000, 2), torch.empty(3000, 2, dtype=torch.int32)
    r.biased_grouped_topk(logits, torch.zeros(16), weights, ids, 4, 4, False)
    c.near(weights, torch.sigmoid(logits.to(c.D64)).topk(2).values)


def test_7_strides_say_where_the_bytes_are():
    _, plain = r.group_fp8_quant(c.X)
    _, moved = r.group_fp8_quant(c.X, transpose_scale=True)
    assert torch.equal(plain, moved)
    assert moved.stride() == (1, 5)


def test_8_a_group_has_the_size_asked_for():
    assert r.group_fp8_quant(c.X, 64)[1].shape == (5, 4)


def test_9_a_block_has_the_size_asked_for():
    with pytest.raises(ValueError, match="a_scale"):
        r.gemm_a8w8_blockscale(c.A8, c.B8, torch.ones(6, 2), torch.ones(1, 2), [64, 64])


def test_10_scoring_is_one_of_two():
    with pytest.raises(ValueError, match="sigmoids"):
        r.grouped_topk(c.LOGITS, *c.buffers(), 4, 2, True, "sigmoids")


def test_11_a_static_scale_is_read_only():
    scale = torch.tensor([0.05])
    version = scale._version
    q, same = r.per_tensor_quant(c.X, c.FN, scale)
    assert same is scale
    assert scale._version == version
    assert q.dtype == c.FN


def test_12_indexer_schema_names_what_it_writes():
    assert "kv_cache" in signature_of(ROWS[10]).mutates


def test_13_fakes_take_three_dimensions():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = c.normal(2, 3, 256)
    for row, args in ((22, (x, c.W, c.EPS, 128)), (25, (x, 64)), (26, (x, 128)), (29, (x, c.W, c.EPS, x, 100))):
        real = overload(row)(*args)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
            fake = overload(row)(*fakes)
        assert [t.shape for t in fake] == [t.shape for t in real]


def test_14_getters_need_no_order_of_calls():
    code = "from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops as r\n"
    code += "".join(f"assert r.{name}()\n" for name in GETTERS)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_15_nothing_is_written_to_the_environment_of_an_import():
    code = """
import os
os.environ["AITER_SITUV2_A4W4"] = "mine"
before = dict(os.environ)
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops as r
r.is_enabled(); r.refresh_env_variables(); r.register_ops_once()
assert dict(os.environ) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_16_a_package_called_aiter_is_not_amds(tmp_path: Path):
    (tmp_path / "aiter").mkdir()
    (tmp_path / "aiter" / "__init__.py").write_text("raise SystemExit('imported')")
    code = "from aiter_ops.integrations.rocm_aiter_ops import is_aiter_found\nassert not is_aiter_found()"
    path = os.pathsep.join([str(tmp_path), str(Path(ops.__file__).parents[1])])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_17_no_tokens_give_no_rows():
    empty = c.X[:0]
    q, scale, kv = r.fused_qk_rmsnorm_group_quant(empty, c.W, c.EPS, c.KV[:0], c.KV_W, c.EPS)
    assert (q.shape, scale.shape, kv.shape) == ((0, 256), (0, 2), (0, 64))


def test_18_partial_rotation_goes_by_the_cache():
    """Columns past those of the cache stay, also where the head is wider."""
    positions, q = torch.tensor([2, 5]), c.normal(2, 32)
    before = q.clone()
    r.triton_rotary_embed(positions, q, c.normal(2, 16), 16, c.normal(9, 8), True)
    assert torch.equal(q.view(2, 2, 16)[..., 8:], before.view(2, 2, 16)[..., 8:])
    assert not torch.equal(q, before)


def test_19_all_methods_trace_without_an_op_of_their_own():
    """vLLM's direct calls have no schema and no fake; these are made of ops that have."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    q = c.normal(5, 2, 16)
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    with FakeTensorMode() as mode:
        q, ends = mode.from_tensor(q), mode.from_tensor(ends)
        assert r.flash_attn_varlen_func(q, q, q, ends, ends, 3, 3).shape == (5, 2, 16)


def test_20_fp8_attention_synchronises_nothing():
    """max_seqlen is not read: a tensor without data serves."""
    case = c.fp8_attention()
    ends = torch.tensor([0, 6, 12], dtype=torch.int32)
    case.check(r.fp8_attn_wrapper(*case.args, cu_seqlens=ends, max_seqlen=torch.empty((), device="meta")))
