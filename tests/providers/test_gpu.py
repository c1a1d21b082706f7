"""What only a GPU can show: every Triton implementation on every sample, under compilation, capture and streams."""

from __future__ import annotations

import pytest
import torch

import aiter_ops
from aiter_ops.core.compare import own_copy

pytestmark = pytest.mark.gpu

OPS = [pytest.param(op, id=op.name) for op in aiter_ops.list_ops()]
STRICT = "triton"


def first(op: aiter_ops.Op, nan: bool = True) -> tuple[list[object], dict[str, object]]:
    some = (s for s in op.samples("cuda", size="small") if nan or "NaN" not in s.name)
    sample = next(s for s in some if s.args[0].shape[0] > 2)
    args, kwargs = op.bind(sample.args, sample.kwargs)
    return list(args), dict(kwargs)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).clone().view(torch.uint8)


def assert_same(op: aiter_ops.Op, got: object, want: object) -> None:
    verdict = op.compare(got, want)
    assert verdict.ok, verdict


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_sample_against_the_reference(op: aiter_ops.Op, seed: int) -> None:
    ran = 0
    for sample in op.samples("cuda", seed=seed):
        args, kwargs = op.bind(sample.args, sample.kwargs)
        if op.implementations["triton"].refuses(*args, **kwargs):
            continue
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        assert_same(op, op.run(op.on("triton"), args, kwargs), op.run(op.reference, args, kwargs))
        for old, new in zip(before, args, strict=True):
            if isinstance(old, torch.Tensor):
                assert torch.equal(bits(old), bits(new))
        ran += 1
    assert ran >= 5


@pytest.mark.parametrize("op", OPS)
def test_repeated_calls_are_right_on_new_tensors(op: aiter_ops.Op) -> None:
    """From the third call of a form on nothing but memory and kernels is asked for; other numbers in other memory."""
    from aiter_ops.providers.triton.repeat import Repeat

    fn = op.implementations["triton"].fn
    forms = fn.__globals__["forms"]
    forms.clear()
    repeated = 0
    with torch.inference_mode():
        for first_one, other in zip(op.samples("cuda", size="small"), op.samples("cuda", 1, size="small"), strict=True):
            args, kwargs = op.bind(first_one.args, first_one.kwargs)
            if op.implementations["triton"].refuses(*args, **kwargs):
                continue
            for _ in range(3):
                op.run(fn, args, kwargs)
            again, named = op.bind(other.args, other.kwargs)
            assert_same(op, op.run(fn, again, named), op.run(op.reference, again, named))
            repeated += any(isinstance(f, Repeat) for f in forms.values())
            forms.clear()
    assert repeated > 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_like_the_reference(op: aiter_ops.Op, value: float) -> None:
    if op.name == "dequant":
        pytest.skip("takes codes; its formats' NaN codes are samples of the quantisers")
    args, kwargs = first(op)
    if not args[0].is_floating_point():
        pytest.skip("takes integers")
    x = args[0].contiguous().clone()
    x.view(-1, x.shape[-1])[1, 5] = value
    args[0] = x
    got, want = op.run(op.on("triton"), args, kwargs), op.run(op.reference, args, kwargs)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.float(), w.float(), rtol=0.13, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("op", OPS)
def test_strict_mode_serves_by_triton(op: aiter_ops.Op) -> None:
    args, kwargs = first(op)
    with aiter_ops.use(STRICT, strict=True), aiter_ops.record() as calls, torch.inference_mode():
        op.run(op.entry, args, kwargs)
    assert {c.provider for c in calls} == {"triton"}


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: aiter_ops.Op) -> None:
    args, kwargs = first(op, nan=False)  # it takes two NaNs for different
    if any(isinstance(a, torch.Tensor) and "float8" in str(a.dtype) for a in args):
        tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(op.opaque, tuple(args), kwargs, test_utils=tests)
    else:
        torch.library.opcheck(op.opaque, tuple(args), kwargs)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_runs_the_kernel(op: aiter_ops.Op, dynamic: bool) -> None:
    torch._dynamo.reset()
    args, kwargs = first(op)
    compiled = torch.compile(op.entry, fullgraph=True, dynamic=dynamic)
    with aiter_ops.use(STRICT), torch.inference_mode(), aiter_ops.record() as calls:
        op.run(compiled, args, kwargs)
        assert_same(op, op.run(compiled, args, kwargs), op.run(op.reference, args, kwargs))
    assert {c.provider for c in calls} == {"triton"}


@pytest.mark.parametrize("op", OPS)
def test_graph_capture_on_a_side_stream(op: aiter_ops.Op) -> None:
    args, kwargs = first(op)
    want = op.run(op.reference, args, kwargs)
    run, given = op.on("triton"), dict(zip(op.parameters, args, strict=False)) | kwargs
    written = {n: own_copy(given[n]) for n in op.signature.mutates if given[n] is not None}
    args = [written.get(n, v) for n, v in zip(op.parameters, args, strict=False)]
    run(*args, **kwargs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run(*args, **kwargs)
        with torch.cuda.graph(graph, stream=stream):
            got = run(*args, **kwargs)
    for name, t in written.items():
        t.copy_(given[name])  # what a call wrote is undone, so that the replay has to write it
    for out in op.as_tuple(got):
        out.view(torch.uint8).fill_(0x55) if out.is_contiguous() else out.fill_(7.0)
    torch.cuda.synchronize()
    graph.replay()
    torch.cuda.synchronize()
    assert_same(op, (*op.as_tuple(got), *written.values()), want)


def test_rows_beyond_two_to_the_31_elements() -> None:
    width = 8192
    x = torch.zeros(2**31 // width + 3, width, dtype=torch.bfloat16, device="cuda")
    x[-1] = torch.randn(width, device="cuda")
    weight = torch.rand(width, dtype=torch.bfloat16, device="cuda")
    op = aiter_ops.get_op("rms_norm")
    assert_same(op, op.on("triton")(x, weight, 1e-6)[-1], op.reference(x[-1], weight, 1e-6))
    quant = aiter_ops.get_op("group_quant")
    q, scale = quant.on("triton")(x)
    want_q, want_scale = quant.reference(x[-1:])
    assert_same(quant, (q[-1:].contiguous(), scale[-1:].contiguous()), (want_q, want_scale))


def test_the_graph_keeps_its_choice_and_eager_follows_the_policy() -> None:
    op = aiter_ops.get_op("rms_norm")
    args, kwargs = first(op)
    for rules, provider in (("triton", "triton"), ("torch", "torch")):
        with aiter_ops.use(rules), aiter_ops.record() as calls, torch.inference_mode():
            op.entry(*args, **kwargs)
        assert [c.provider for c in calls] == [provider]


def test_inputs_that_need_grad_take_the_reference_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    from aiter_ops.core import tracing

    tracing.forget_warnings()
    x = torch.randn(4, 64, device="cuda", requires_grad=True)
    aiter_ops.rms_norm(x, None, 1e-6).sum().backward()
    aiter_ops.rms_norm(x, None, 1e-6)
    assert x.grad is not None
    assert len([r for r in caplog.records if "needs grad" in r.getMessage()]) == 1
