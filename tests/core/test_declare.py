"""Declaring ops and implementations: signatures, schemas, registration."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core.op import op
from aiter_ops.core.provider import Provider, Requirements
from aiter_ops.core.samples import Make
from aiter_ops.core.schema import read_signature


def no_samples(make: Make) -> Iterator[aiter_ops.Sample]:
    yield aiter_ops.Sample("one", (make.normal(2, 4, dtype=torch.float32),))


def test_another_signature_fails_at_import_and_shows_both() -> None:
    provider = Provider("elsewhere")
    wrong = {
        "name": lambda y, weight, eps, weight_offset=0.0, cast_before_weight=False: y,
        "order": lambda weight, x, eps, weight_offset=0.0, cast_before_weight=False: x,
        "default": lambda x, weight, eps=1e-6, weight_offset=0.0, cast_before_weight=False: x,
        "missing": lambda x, weight, eps, weight_offset=0.0: x,
        "kind": lambda x, weight, eps, weight_offset=0.0, *, cast_before_weight=False: x,
    }
    for fn in wrong.values():
        with pytest.raises(TypeError) as raised:
            provider.implements("rms_norm")(fn)
        text = str(raised.value)
        assert "provider elsewhere implements rms_norm with another signature" in text
        assert "op:             rms_norm(x, weight, eps, weight_offset=0.0, cast_before_weight=False)" in text
        assert "implementation: <lambda>(" in text
    assert "elsewhere" not in aiter_ops.get_op("rms_norm").implementations_loaded()


def test_the_schema_says_types_optionals_defaults_and_mutation() -> None:
    def sample(
        x: Tensor,
        out: Tensor,
        w: Tensor | None,
        n: int = 4,
        *,
        mode: Literal["a", "b"] = "a",
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        raise AssertionError

    assert read_signature(sample, mutates=("out",)).schema == (
        'sample(Tensor x, Tensor(a0!) out, Tensor? w, SymInt n=4, *, str mode="a", ScalarType? dtype=None) -> (Tensor, Tensor)'
    )


def test_a_list_of_integers_has_the_length_of_its_default() -> None:
    def sample(x: Tensor, block: list[int] = [128, 64]) -> Tensor: ...  # noqa: B006

    assert read_signature(sample).schema == "sample(Tensor x, SymInt[2] block=[128, 64]) -> Tensor"


def test_what_a_schema_cannot_say_is_an_error() -> None:
    def bad_type(x: Tensor, y: dict[str, int]) -> Tensor: ...
    def bad_result(x: Tensor) -> list[Tensor]: ...

    with pytest.raises(TypeError, match="parameter y"):
        read_signature(bad_type)
    with pytest.raises(TypeError, match="returns"):
        read_signature(bad_result)
    with pytest.raises(TypeError, match="mutates"):
        read_signature(_fine, mutates=("nothing",))


def _fine(x: Tensor) -> Tensor: ...


def test_opaque_op_needs_a_fake() -> None:
    with pytest.raises(TypeError, match="needs a fake="):

        @op("norm", samples=no_samples)
        def never_declared(x: Tensor) -> Tensor:
            return x


def test_an_op_with_a_fake_and_a_mutated_argument() -> None:
    """What later families are made of: not inline, writes into an argument, keyword-only parameters."""

    def fake(x: Tensor, out: Tensor, *, factor: float = 2.0) -> None:
        return None

    @op("norm", samples=no_samples, results=(), fake=fake, mutates=("out",))
    def scale_into_for_test(x: Tensor, out: Tensor, *, factor: float = 2.0) -> None:
        """out = x · factor."""
        out.copy_(x * factor)

    try:
        x, out = torch.ones(3), torch.zeros(3)
        scale_into_for_test(x, out, factor=3.0)
        assert out.tolist() == [3.0] * 3
        target = aiter_ops.get_op("scale_into_for_test")
        torch.library.opcheck(target.opaque, (x, out), {"factor": 2.0})
        compiled = torch.compile(lambda a, b: scale_into_for_test(a, b), fullgraph=True, backend="aot_eager")
        with torch.inference_mode():
            compiled(x, out)
        assert out.tolist() == [2.0] * 3
    finally:
        from aiter_ops.core import runtime

        del runtime.ops["scale_into_for_test"]


def test_declared_twice_and_implemented_twice() -> None:
    with pytest.raises(ValueError, match="declared twice"):

        @op("norm", samples=no_samples, inline=True)
        def rms_norm(x: Tensor) -> Tensor:
            return x

    target = aiter_ops.get_op("gelu_and_mul")
    provider = Provider("twice_for_test")
    provider.implements(target)(lambda x: x)
    try:
        with pytest.raises(ValueError, match="implements gelu_and_mul twice"):
            provider.implements(target)(lambda x: x)
    finally:
        del target.implementations_loaded()["twice_for_test"]
        target.unresolve()


@pytest.mark.parametrize("target", aiter_ops.list_ops(), ids=lambda o: o.name)
def test_every_op_documents_itself(target: aiter_ops.Op) -> None:
    """Docstrings name every parameter, the shapes and what comes back; samples are small, named and repeatable."""
    assert target.entry.__doc__
    says = ("Returns", "returns", "As `") if target.results else ("Write", "in place", "into `")
    assert any(word in target.doc for word in says)
    assert re.search(r"\[(\.\.\.|[A-Z][a-z]?\b|[23], T)", target.doc) or "x's shape" in target.doc
    names = [s.name for s in target.samples(values=False)]
    assert len(names) == len(set(names)), "sample names repeat"
    one, two = next(target.samples(seed=3)), next(target.samples(seed=3))
    assert torch.equal(one.args[0].view(torch.uint8), two.args[0].view(torch.uint8))
    cost = target.cost(*one.args, **one.kwargs)
    assert cost.bytes > 0
    assert cost.flops >= 0


def test_every_op_is_exported_by_name() -> None:
    for target in aiter_ops.list_ops():
        assert getattr(aiter_ops, target.name) is target.entry
        assert re.fullmatch(r"[a-z][a-z0-9_]*", target.name)


def test_unknown_op_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'rms_norm'"):
        aiter_ops.get_op("rmsnorm")


def test_requirements_say_what_is_unmet() -> None:
    cpu, mi300 = aiter_ops.platform_for("cpu"), aiter_ops.platform_for("gfx942", aiter="0.1.10.post3")
    assert Requirements(gpu=True).unmet(cpu) == "needs a GPU; this machine has none"
    assert Requirements(vendors=("amd",)).unmet(mi300) is None
    assert "serves gfx95*; this machine is gfx942" in str(Requirements(archs=("gfx95*",)).unmet(mi300))
    assert Requirements(aiter=("0.1.5", None)).unmet(mi300) is None
    assert Requirements(aiter=("0.1.17", None)).unmet(mi300) == "needs AITER >= 0.1.17; 0.1.10.post3 is installed"
    assert Requirements(aiter=("0.1.5", "0.1.10")).unmet(mi300) is not None
    assert Requirements(aiter=("0.1.5", None)).unmet(aiter_ops.platform_for("gfx942")) == "AITER is not installed"


@pytest.mark.parametrize("target", aiter_ops.list_ops(), ids=lambda o: o.name)
@pytest.mark.parametrize("arch", ["gfx942", "gfx950", "gfx1201", "sm_90"])
def test_arguments_are_refused_alike_by_position_and_by_name(
    target: aiter_ops.Op, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = aiter_ops.platform_for(arch, aiter="0.1.16")
    sample = next(target.samples(values=False))
    args, kwargs = target.bind(sample.args, sample.kwargs, there)
    named = {**dict(zip(target.parameters, args, strict=False)), **kwargs}
    monkeypatch.setattr("aiter_ops.core.platforms.platform", lambda: there)
    for implementation in target.implementations.values():
        assert implementation.refuses(**named) == implementation.refuses(*args, **kwargs)


def test_declaring_costs_little_more_than_registering() -> None:
    """Every import of the package declares every op. The best of a few rounds, since other work disturbs a clock."""
    from aiter_ops.core import runtime

    library = torch.library.Library("aiter_ops_test", "DEF")

    def declare(number: int) -> None:
        def declared(x: Tensor, size: int = 128, dtype: torch.dtype | None = None) -> Tensor: ...

        declared.__name__ = f"declared_{number}_for_test"
        op("norm", samples=no_samples, inline=True)(declared)

    def register(number: int) -> None:
        name = f"registered_{number}"
        library.define(f"{name}(Tensor x, int size=128, ScalarType? dtype=None) -> Tensor")
        for key in ("CompositeExplicitAutograd", "Autograd", "Meta"):
            library.impl(name, _fine, key)

    best = dict.fromkeys((declare, register), float("inf"))
    try:
        for first in range(0, 50, 10):
            for way in best:
                start = time.process_time()
                for number in range(first, first + 10):
                    way(number)
                best[way] = min(best[way], time.process_time() - start)
    finally:
        for name in [n for n in runtime.ops if n.endswith("_for_test")]:
            del runtime.ops[name]
    assert best[declare] < 10 * best[register], best


def test_parameters_leave_the_names_of_the_generated_code() -> None:
    def taken(x: Tensor, slot: int = 0) -> Tensor: ...

    with pytest.raises(TypeError, match=r"taken: parameter names \['slot'\] are taken"):
        op("norm", samples=no_samples, inline=True)(taken)
    # by itself: torch.compile leaves names of its own among them
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


NAMES = """
import aiter_ops
from aiter_ops.core import codegen

for target in aiter_ops.list_ops():
    target.checks  # writes the op
    given = {*target.signature.defaults, *target._defaults, target.name, "__builtins__"}
    assert target._names.keys() - given <= codegen._TAKEN, target._names.keys() - given - codegen._TAKEN
"""


def test_signatures_are_read_as_inspect_does() -> None:
    for target in aiter_ops.list_ops():
        want = inspect.signature(target.written).parameters.values()
        assert [(p.name, p.kind, p.default) for p in target.signature.params] == [
            (p.name, p.kind, p.default) for p in want
        ]


def test_an_op_that_was_never_called_looks_like_its_function() -> None:
    done = subprocess.run([sys.executable, "-c", UNCALLED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


UNCALLED = """
import copy, inspect, pickle, pydoc, threading, traceback
import torch, aiter_ops
from aiter_ops import rms_norm

before = inspect.signature(rms_norm), rms_norm.__doc__, inspect.getsource(rms_norm), pydoc.plain(pydoc.render_doc(rms_norm))
assert list(before[0].parameters) == ["x", "weight", "eps", "weight_offset", "cast_before_weight"]
assert pickle.loads(pickle.dumps(rms_norm)) is copy.deepcopy(rms_norm) is aiter_ops.get_op("rms_norm").entry is rms_norm
assert "slow" not in rms_norm.__globals__

x, got = torch.ones(2, 8), []
threads = [threading.Thread(target=lambda: got.append(rms_norm(x, None, eps=1e-6))) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert len(got) == 8 and all(torch.equal(g, got[0]) for g in got)
after = inspect.signature(rms_norm), rms_norm.__doc__, inspect.getsource(rms_norm), pydoc.plain(pydoc.render_doc(rms_norm))
assert before == after
assert rms_norm is aiter_ops.rms_norm and rms_norm.__code__.co_varnames == aiter_ops.get_op("rms_norm").parameters

for fn in (rms_norm, aiter_ops.layer_norm):
    try:
        fn(x)
    except TypeError as error:
        assert "missing 2 required positional arguments" in str(error) or "missing 3" in str(error), error
"""


def test_import_compiles_no_function_and_loads_nothing_that_torch_has_not() -> None:
    """What an import costs, counted: time is for benchmarks, a clock on a shared machine says little."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


IMPORTED = """
import sys, torch
modules, compiled = set(sys.modules), []
sys.addaudithook(lambda event, args: compiled.append(args[1]) if event == "compile" else None)
import aiter_ops
ops, written = aiter_ops.list_ops(), [c for c in compiled if str(c).startswith("<aiter_ops")]
assert written == ["<aiter_ops first call>"], written
assert not any("slow" in op._names for op in ops)
# the fields of named tuples and data classes, and each text that annotates a parameter once
others = [c for c in compiled if not str(c).endswith(".py")]
assert len(others) < 200, len(others)
new = {n for n in set(sys.modules) - modules if not n.startswith("aiter_ops")}
heavy = {"torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "sympy", "triton", "numpy"}
heavy |= {"transformers", "typer", "rich", "packaging", "asyncio", "unittest", "pydoc", "tokenize", "inspect"}
assert not heavy & new, heavy & new
ours = [n for n in sys.modules if n.startswith("aiter_ops")]
rooms = {n.split(".")[1] for n in ours if "." in n}
assert rooms == {"core", "ops"}, rooms
"""
