"""vLLM's AITER layer on this one: its class object, its torch ops, and its fusion patterns over them, in a child.

vLLM registers its torch ops where it finds AITER on ROCm. The child tells it that it did, and plays the part of the
plugin there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops
from aiter_ops.integrations.vllm import table

from .conftest import Runner, environment

PRELUDE = """
import importlib, re, warnings
warnings.simplefilter("error", UserWarning)
import torch
import vllm
from vllm import _aiter_ops
from vllm._aiter_ops import rocm_aiter_ops as held
from vllm.v1.attention.backends.mla import rocm_aiter_mla as holder
_aiter_ops.is_aiter_found_and_supported = lambda: True
held.register_ops_once()
import aiter_ops
from aiter_ops.integrations.vllm import aiter_class, plugin, table
rows = [r for r in table.OVERRIDES if r.kind in ("class method", "torch op") and plugin.present(r)]
left = [r.name for r in table.OVERRIDES if r.kind in ("class method", "torch op") and r not in rows]
assert set(left) <= table.NEW_IN_033, left
assert [m for r in rows if (m := plugin.mismatch(r))] == []
aiter_class.install(rows, "rocm")
x, w = torch.randn(5, 256).bfloat16(), torch.randn(256).bfloat16()
"""

CLASS = """
assert holder.rocm_aiter_ops is held
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops as ours
with torch.inference_mode():
    with aiter_ops.record() as calls:
        y = holder.rocm_aiter_ops.rms_norm(x, w, 1e-6)
        q, scale = torch.ops.vllm.rocm_aiter_group_fp8_quant(x, 128, True)
    assert [c.op for c in calls] == ["rms_norm", "group_quant"], calls
    assert torch.equal(y, ours.rms_norm(x, w, 1e-6))
    assert scale.stride() == (1, 5)
    # the schedule that AITER's kernel is given changes no result
    kv, o = torch.randn(8, 1, 1, 96), torch.empty(2, 4, 64)
    args = (torch.randn(2, 4, 96), kv, o, 0.1, torch.tensor([0, 1, 2]).int(), 1, torch.tensor([0, 3, 8]).int())
    args += (torch.arange(8).int(), torch.ones(2).int())
    ours.mla_decode_fwd(*args)
    want = o.clone()
    held.mla_decode_fwd(*args, work_meta_data=torch.zeros(1), work_indptr=torch.zeros(1), reduce_indptr=torch.zeros(1))
    assert torch.equal(o, want)
    # what is not honoured goes to vLLM's own method, which here has no AITER; in strict mode it is an error of ours
    fp8 = dict(w1_scale=torch.ones(2), w2_scale=torch.ones(2), quant_method=3, activation_method=0)
    moe = (x, torch.zeros(2, 8, 256).bfloat16(), torch.zeros(2, 256, 4).bfloat16())
    moe += (torch.ones(5, 1), torch.zeros(5, 1).int())
    for strict, error in ((False, "aiter"), (True, "quant_method")):
        with aiter_ops.use(strict=strict):
            try:
                held.fused_moe(*moe, **fp8)
            except Exception as e:
                assert error in str(e), (strict, repr(e))
            else:
                raise AssertionError("served")
# questions and getters stay vLLM's
assert held.get_per_token_quant_op() is torch.ops.vllm.rocm_aiter_per_token_quant.default
assert held.is_enabled.__qualname__.startswith("rocm_aiter_ops") or not isinstance(held.__dict__["is_enabled"], staticmethod)
print("fine")
"""

FUSION = """
from torch._dynamo.backends.common import aot_autograd
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.config.compilation import CompilationMode

gpu_only = torch.library.Library("_C", "FRAGMENT")
def patterns():
    # the module names kernels that a CPU build does not have
    for _ in range(20):
        try:
            return importlib.import_module("vllm.compilation.passes.fusion.rocm_aiter_fusion")
        except AttributeError as error:
            gpu_only.define(re.search(r"no attribute '(\\w+)'", str(error))[1] + "(Tensor! out) -> ()")

warnings.simplefilter("default", UserWarning)
config = VllmConfig(
    compilation_config=CompilationConfig(mode=CompilationMode.VLLM_COMPILE, custom_ops=["none", "+quant_fp8"])
)
with set_current_vllm_config(config):
    f = patterns()
    from vllm.compilation.passes.inductor_pass import enable_fake_mode

    found = f.PatternMatcherPass(pass_name="ours")

    @enable_fake_mode
    def collect(_):
        for pattern in (f.AiterRMSFp8GroupQuantPattern, f.AiterFusedAddRMSFp8GroupQuantPattern):
            pattern(1e-6, f.FP8_DTYPE, f.GroupShape(1, 128)).register(found)
        for pattern in (f.AiterRMSNormDynamicQuantPattern, f.AiterFusedAddRMSNormDynamicQuantPattern):
            pattern(1e-6, f.FP8_DTYPE).register(found)

    collect(None)
    matched = []

    def compiler(module, inputs):
        matched.append(found.apply(module.graph))
        module.recompile()
        return module

    token, group = held.get_per_token_quant_op(), held.get_group_quant_op()
    def norm(x, r, w):
        return torch.ops.vllm_ir.rms_norm(x, w, 1e-6), x
    def add(x, r, w):
        return torch.ops.vllm_ir.fused_add_rms_norm(x, r, w, 1e-6)
    residual = torch.randn(5, 256).bfloat16()
    cases = {
        "rms_norm_dynamic_quant": (norm, lambda y: token(y, f.FP8_DTYPE)),
        "add_rms_norm_dynamic_quant": (add, lambda y: token(y, f.FP8_DTYPE)),
        "rms_norm_group_quant": (norm, lambda y: group(y, 128)),
        "add_rms_norm_group_quant": (add, lambda y: group(y, 128)),
    }
    for op, (first, quant) in cases.items():
        def model(x, r, w):
            y, h = first(x, r, w)
            return *quant(y), h
        with torch.no_grad():
            want = model(x, residual, w)
            torch._dynamo.reset()
            with aiter_ops.record() as calls:
                got = torch.compile(model, backend=aot_autograd(fw_compiler=compiler))(x, residual, w)
        assert [c.op for c in calls] == [op], calls
        (q, s, h), (want_q, want_s, want_h) = got, want
        wide = lambda q, s: (q.float().unflatten(-1, (s.shape[-1], -1)) * s[..., None]).flatten(-2)
        # the unfused norm is rounded to bf16 before it becomes FP8: one code at most, 2^-3 of the value
        a, b = wide(q, s), wide(want_q, want_s)
        assert ((a - b).abs() <= 2.0**-3 * b.abs() + 2.0**-8 * b.abs().max()).all(), op
        assert (a - b).abs().mean() < 2.0**-5 * b.abs().mean(), op
        torch.testing.assert_close(h, want_h, rtol=2.0**-8, atol=0)
    assert matched == [1] * len(cases), matched
print("fine")
"""


@pytest.mark.parametrize("body", [CLASS, FUSION], ids=["class and ops", "fusion patterns"])
def test_in_place_of_vllms_own(body: str, forked: Runner, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(PRELUDE + body)
    done = forked([str(tmp_path / "child.py")], environment(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "fine"


def test_the_class_of_the_installed_vllm() -> None:
    """Parameter by parameter, of the objects themselves; the sources are compared in test_rocm_conformance.py."""
    from vllm._aiter_ops import rocm_aiter_ops as theirs

    from aiter_ops.integrations.vllm.aiter_class import differs

    known = {row.name for row in table.METHODS} - table.NEW_IN_033
    assert len(known) > 30
    for name in sorted(known):
        assert differs(name, getattr(theirs, name)) is None, name
    public = [n for n in vars(theirs) if not n.startswith("_") and callable(getattr(theirs, n))]
    missing = [n for n in public if not hasattr(rocm_aiter_ops, n)]
    assert missing == []
    # a check that must fail: a parameter that ours does not have, and one in another place
    swapped = lambda A, B, Bs, As, bias=None, output_dtype=None: None  # noqa: E731
    assert str(differs("w8a8_gemm", swapped)).startswith("it takes Bs, ours As")
    wider = lambda x, weight, epsilon, more=1: None  # noqa: E731
    assert differs("rms_norm", wider) == "it takes more, which ours does not"
