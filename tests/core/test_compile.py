"""Every op under torch.compile, fake tensors, make_fx, export, vmap, counting modes and autograd."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend, EagerAndRecordGraphs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.optests.generate_tests import ALL_TEST_UTILS
from torch.utils.flop_counter import FlopCounterMode

import aiter_ops

OPS = [pytest.param(op, id=op.name) for op in aiter_ops.list_ops()]
RMS = aiter_ops.get_op("rms_norm")
TIED = ("attention", "mla", "rope", "kv_cache", "sampling")
"""Families in which a tensor describes the shapes of the others, so that no tensor can be doubled alone."""


def first(op: aiter_ops.Op) -> aiter_ops.Sample:
    return next(s for s in op.samples(size="small") if s.args[0].shape[0] > 2)


def assert_same(op: aiter_ops.Op, got: object, want: object) -> None:
    verdict = op.compare(got, want)
    assert verdict.ok, verdict


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_aot_eager_fullgraph(op: aiter_ops.Op, dynamic: bool) -> None:
    torch._dynamo.reset()
    sample = first(op)
    compiled = torch.compile(op.entry, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.inference_mode():
        want = op.run(op.reference, sample.args, sample.kwargs)
        assert_same(op, op.run(compiled, sample.args, sample.kwargs), want)
        if dynamic and op.family not in TIED:
            more = [torch.cat([a, a]) if isinstance(a, torch.Tensor) and a.dim() > 1 else a for a in sample.args]
            assert_same(op, op.run(compiled, more, sample.kwargs), op.run(op.reference, more, sample.kwargs))


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_inductor(op: aiter_ops.Op) -> None:
    torch._dynamo.reset()
    sample = first(op)
    compiled = torch.compile(op.entry, fullgraph=True)
    with torch.inference_mode():
        got = op.run(compiled, sample.args, sample.kwargs)
        assert_same(op, got, op.run(op.reference, sample.args, sample.kwargs))


@pytest.mark.parametrize("op", OPS)
def test_opaque_op_under_compile(op: aiter_ops.Op) -> None:
    """What torch.compile sees on a GPU machine: the opaque op, whichever provider its slot holds."""
    torch._dynamo.reset()
    sample = first(op)
    args, kwargs = op.bind(sample.args, sample.kwargs)
    with torch.inference_mode():
        compiled = torch.compile(lambda *a, **k: op.opaque(*a, **k), fullgraph=True, backend="aot_eager")
        assert_same(op, op.run(compiled, args, kwargs), op.run(op.reference, args, kwargs))


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: aiter_ops.Op) -> None:
    # opcheck takes two NaNs for different
    samples = [s for s in op.samples(size="small") if s.name != "zero rows" and "NaN" not in s.name]
    for sample in (samples[0], samples[len(samples) // 2], samples[-1]):
        args, kwargs = op.bind(sample.args, sample.kwargs)
        # opcheck compares arguments before and after with arithmetic that torch lacks for FP8 inputs on CPU
        fp8_inputs = any(isinstance(a, torch.Tensor) and "float8" in str(a.dtype) for a in args)
        tests = [t for t in ALL_TEST_UTILS if t != "test_schema" or not fp8_inputs]
        torch.library.opcheck(op.opaque, args, kwargs, test_utils=tests)


@pytest.mark.parametrize("op", OPS)
def test_fake_matches_reference_on_every_sample(op: aiter_ops.Op) -> None:
    for sample in op.samples(size="small"):
        want = op.as_tuple(op.entry(*sample.args, **sample.kwargs))
        with FakeTensorMode() as mode:
            args = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in sample.args]
            kwargs = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in sample.kwargs.items()}
            got = op.as_tuple(op.entry(*args, **kwargs))
        for g, w in zip(got, want, strict=True):
            assert (g.shape, g.dtype, g.stride()) == (w.shape, w.dtype, w.stride()), sample.name


@pytest.mark.parametrize("op", OPS)
def test_make_fx_keeps_the_op_opaque(op: aiter_ops.Op) -> None:
    sample = first(op)
    given = [a for a in sample.args if isinstance(a, torch.Tensor)]

    def call(*values: torch.Tensor) -> object:
        it = iter(values)
        return op.entry(*[next(it) if isinstance(a, torch.Tensor) else a for a in sample.args], **sample.kwargs)

    with torch.inference_mode():
        graph = make_fx(call, tracing_mode="fake")(*given)
        assert op.opaque in [node.target for node in graph.graph.nodes]
        want = op.run(op.reference, sample.args, sample.kwargs)

        def replay(*args: object, **kwargs: object) -> object:
            return graph(*[a for a in args if isinstance(a, torch.Tensor)])

        assert_same(op, op.run(replay, sample.args, sample.kwargs), want)


class Norm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return aiter_ops.rms_norm(x, self.weight, 1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    x = torch.randn(4, 64)
    module = Norm()
    program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}}, strict=strict)
    assert_same(RMS, program.module()(torch.randn(7, 64) * 0 + x[0]), module(x[:1].expand(7, 64)))


def test_vmap_equals_the_loop() -> None:
    x, weight = torch.randn(5, 3, 64), torch.rand(64)
    got = torch.vmap(lambda row: aiter_ops.rms_norm(row, weight, 1e-6))(x)
    assert_same(RMS, got, aiter_ops.rms_norm(x, weight, 1e-6))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_the_opaque_op() -> None:
    """A kernel provider inside vmap: functorch takes the opaque op apart into plain calls."""
    x, weight = torch.randn(5, 3, 64), torch.rand(64)
    got = torch.vmap(lambda row: torch.ops.aiter_ops.rms_norm(row, weight, 1e-6))(x)
    assert_same(RMS, got, aiter_ops.rms_norm(x, weight, 1e-6))


def test_flop_counter_sees_the_opaque_op() -> None:
    x, weight = torch.randn(5, 64), torch.rand(64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        got = aiter_ops.rms_norm(x, weight, 1e-6)
    assert counter.get_total_flops() == 0
    assert_same(RMS, got, RMS.reference(x, weight, 1e-6))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_take_the_reference(compiled: bool) -> None:
    torch._dynamo.reset()
    x = torch.randn(5, 64, dtype=torch.float32, requires_grad=True)
    weight = torch.rand(64, requires_grad=True)
    fn = torch.compile(aiter_ops.rms_norm, fullgraph=True, backend="aot_eager") if compiled else aiter_ops.rms_norm
    fn(x, weight, 1e-6).square().sum().backward()
    x64 = x.detach().double().requires_grad_()
    torch.nn.functional.rms_norm(x64, (64,), weight.detach().double(), 1e-6).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-5)
    assert weight.grad is not None


def test_functional_grad_takes_the_reference() -> None:
    x, weight = torch.randn(5, 64), torch.rand(64)
    grad = torch.func.grad(lambda v: aiter_ops.rms_norm(v, weight, 1e-6).square().sum())(x)
    assert grad.abs().max() > 0


def test_the_opaque_op_refuses_gradients() -> None:
    x = torch.randn(5, 64, requires_grad=True)
    with pytest.raises(RuntimeError, match="inference only"):
        torch.ops.aiter_ops.rms_norm(x, None, 1e-6)
    with torch.no_grad():
        torch.ops.aiter_ops.rms_norm(x, None, 1e-6)


def test_a_policy_change_recompiles() -> None:
    torch._dynamo.reset()
    RMS.checks  # noqa: B018 - writes the op: what torch.compile traces after the first call
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(aiter_ops.rms_norm, fullgraph=True, backend=counter)
    x, weight = torch.randn(5, 64), torch.rand(64)
    with torch.inference_mode():
        compiled(x, weight, 1e-6)
        compiled(x, weight, 1e-6)
        assert counter.frame_count == 1
        with aiter_ops.use("-triton"):
            compiled(x, weight, 1e-6)
        assert counter.frame_count == 2


def test_inline_reference_is_what_the_compiler_sees_on_cpu() -> None:
    torch._dynamo.reset()
    counter = EagerAndRecordGraphs()
    with torch.inference_mode():
        torch.compile(aiter_ops.rms_norm, fullgraph=True, backend=counter)(torch.randn(5, 64), None, 1e-6)
    targets = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    assert not any("aiter_ops" in t for t in targets), targets


def test_subclasses_go_through_the_dispatcher() -> None:
    seen: list[str] = []

    class Wrapped(torch.Tensor):
        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> Wrapped:
            made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
            made.inner = inner
            return made

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*[a.inner if isinstance(a, Wrapped) else a for a in args], **(kwargs or {}))

    x = torch.randn(2, 64)
    with torch.inference_mode():
        assert_same(RMS, aiter_ops.rms_norm(Wrapped(x), None, 1e-6), RMS.reference(x, None, 1e-6))
    assert seen == ["aiter_ops.rms_norm.default"]


def test_the_first_thing_a_process_does_may_be_to_compile() -> None:
    """What an op writes at first need, it writes while torch.compile traces; fakes and gradients need it too."""
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_compiled_first_is_not_compiled_again_for_eager_calls() -> None:
    """An eager call gives the entry no other code than the traced one did; compiled by itself an op takes two."""
    done = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


COUNTED = """
import torch, aiter_ops
from torch._dynamo.testing import CompileCounterWithBackend

def block(x):
    return aiter_ops.rms_norm(x, None, 1e-6) + aiter_ops.silu_and_mul(torch.cat([x, x], -1))

def counted(fn, *args):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fn, fullgraph=True, backend=counter)
    for _ in range(4):
        torch.testing.assert_close(compiled(*args), fn(*args))
    return counter.frame_count

with torch.inference_mode():
    x = torch.randn(2, 8)
    assert counted(block, x) == 1
    assert counted(aiter_ops.rms_norm, x, None, 1e-6) == 1
    # more ops than torch.compile compiles one code object for
    for op in (o for o in aiter_ops.list_ops() if o.family in ("activation", "norm")):
        sample = next(s for s in op.samples(size="small") if s.args[0].shape[0] > 2)
        compiled = torch.compile(op.entry, fullgraph=True, backend="eager")
        first, second = (op.run(compiled, sample.args, sample.kwargs) for _ in range(2))
        for a, b in zip(first, second):
            torch.testing.assert_close(a.float(), b.float(), equal_nan=True)
"""


FIRST = """
import torch, aiter_ops
from torch._subclasses.fake_tensor import FakeTensorMode

def inlined(x, w):
    return aiter_ops.rms_norm(x, w, 1e-6) + aiter_ops.silu_and_mul(x)[..., :1]

with torch.inference_mode():
    x, w = torch.ones(2, 8), torch.ones(8)
    got = torch.compile(inlined, fullgraph=True, backend="aot_eager")(x, w)
    assert torch.allclose(got, torch.ones(2, 8) + 0.7310586)
    torch.compile(aiter_ops.layer_norm, fullgraph=True, dynamic=True, backend="aot_eager")(x, None, None, 1e-6)
    with FakeTensorMode():
        q, scale = torch.ops.aiter_ops.group_quant(torch.empty(3, 256))
    assert scale.shape == (3, 2)
    assert torch.ops.aiter_ops.mxfp4_quant(torch.empty(3, 256, device="meta"))[0].shape == (3, 128)
try:
    torch.ops.aiter_ops.gelu_and_mul(torch.ones(2, 8, requires_grad=True))
except RuntimeError as error:
    assert "inference only" in str(error)
else:
    raise AssertionError("a lost gradient")
"""


FIRST_CALLS = """
import torch, aiter_ops as ops

def twice(q, positions, angles):
    ops.rotary_embedding(positions, q, None, 64, angles, True)
    ops.rotary_embedding(positions, q, None, 64, angles, True)
    return ops.silu_and_mul(ops.silu_and_mul(q))

q, positions, angles = torch.randn(4, 128), torch.arange(4), torch.randn(16, 64)
with torch.inference_mode():
    got = torch.compile(twice, fullgraph=True, backend="aot_eager")(q.clone(), positions, angles)
    torch.testing.assert_close(got, twice(q.clone(), positions, angles))
    torch.testing.assert_close(torch.compile(twice, backend="aot_eager")(q.clone(), positions, angles), got)
"""


def test_first_calls_are_traced_and_come_twice() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
