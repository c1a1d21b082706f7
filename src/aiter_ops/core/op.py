"""Declaration of an op: one decorated PyTorch function is its name, signature, meaning, fallback and test reference."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from . import codegen, library, runtime, tracing
from .compare import Tolerance, Verdict, compare, own_copy
from .decide import Refused
from .platforms import Platform, fp8_dtype, platform
from .provider import (
    Implementation,
    Predicate,
    Provider,
    Requirements,
    get_provider,
    load_family,
    provider_names,
)
from .samples import Make, Sample, SampleSource
from .schema import read_signature, require_same_signature


class Cost(NamedTuple):
    """bytes: what must move through memory (inputs read once, results written once). flops: operations to be done."""

    bytes: int
    flops: int


class Op:
    """What is computed. Made by the `op` decorator; found by `get_op`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        family: str,
        samples: SampleSource,
        results: tuple[str, ...],
        tolerance: Tolerance,
        inline: bool,
        fake: Callable[..., Any] | None,
        check: Callable[..., None] | None,
        flops: Callable[..., int] | None,
        moved: Callable[..., int] | None,
        strided: tuple[str, ...],
        mutates: tuple[str, ...],
        batch_invariant: bool,
    ) -> None:
        self.name, self.family = fn.__name__, family
        self.signature = read_signature(fn, mutates)
        self.results, self.tolerance, self.inline = results, tolerance, inline
        self._written, self._samples, self._check = fn, samples, check
        self._flops, self._moved = flops, moved
        self._defaults = {f"default_{p.name}": fp8_dtype for p in self.signature.params if p.is_fp8_default}
        if len(results) != self.signature.results:
            raise TypeError(f"{self.name}: results={results} for {self.signature.results} returned tensors")
        if not inline and fake is None:
            raise TypeError(f"{self.name}: an op that is not inline needs a fake=")
        self._strided = tuple([results.index(name) for name in strided])
        self._ready = self._writer()
        self.entry, self._names = codegen.entry(self.signature, self._ready)
        functools.update_wrapper(self.entry, fn)
        self.entry.op = self  # type: ignore[attr-defined]
        self._fake, self.batch_invariant = fake, batch_invariant
        self._implementations: dict[str, Implementation] = {}
        self._reference: Callable[..., Any]
        self._checks: Callable[..., None]
        self._opaque: Any
        self._register()
        self.unresolve()

    @property
    def doc(self) -> str:
        return inspect.getdoc(self._written) or ""

    @property
    def schema(self) -> str:
        """The torch schema, written from the Python signature."""
        return f"aiter_ops::{self.signature.schema}"

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.signature.params)

    @property
    def written(self) -> Callable[..., Any]:
        """The reference as its author wrote it, without checks."""
        return self._written

    # --- torch registration -------------------------------------------------------------------------------------

    def _register(self) -> None:
        library.define(self.name, self.signature.schema, self._run_fake)
        library.LIBRARY.impl(self.name, self._run, "CompositeExplicitAutograd")
        library.LIBRARY.impl(self.name, self._run_below_autograd, "Autograd")

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return self._slot(*args, **kwargs)

    def _run_below_autograd(self, *args: Any, **kwargs: Any) -> Any:
        self._ready()
        return self._names["autograd"](*args, **kwargs)

    def _run_fake(self, *args: Any, **kwargs: Any) -> Any:
        return (self._fake or self.reference)(*args, **kwargs)

    # --- what is written at first need --------------------------------------------------------------------------

    def _write(self) -> None:
        self._opaque = getattr(torch.ops.aiter_ops, self.name).default
        error = RuntimeError(
            f"aiter_ops.{self.name} as torch.ops.aiter_ops.{self.name} is inference only: an input needs grad; "
            f"call aiter_ops.{self.name} (it takes the reference then) or run under torch.inference_mode()"
        )
        names = self._names
        names.update(self._defaults, fn=self._written, check=self._check, fake=self._fake, graded=self._graded)
        names.update(opaque=self._opaque, error=error, inlines=runtime.inlines, state=runtime.state)
        names["below"] = torch._C._AutoDispatchBelowAutograd
        codegen.write(self.signature, names, self._check is not None, self._strided, self._fake is not None)
        names["reference"].__doc__ = self._written.__doc__
        self._checks, self._reference = names["checks"], names["reference"]

    def _writer(self) -> Callable[[], bool]:
        """A function that writes the op where it is not; torch.compile calls it while tracing, and goes on after."""

        def ready() -> bool:
            if "_reference" not in self.__dict__:
                with runtime.lock:
                    if "_reference" not in self.__dict__:
                        self._write()
            codegen.settle(self._names)
            return True

        ready._dynamo_marked_constant = True  # type: ignore[attr-defined]
        return ready

    @property
    def reference(self) -> Callable[..., Any]:
        """The op in plain PyTorch, as a plain function: arguments checked, every new result contiguous."""
        self._ready()
        return self._reference

    @property
    def checks(self) -> Callable[..., None]:
        """Raises TypeError or ValueError, in one line, for arguments that are not accepted."""
        self._ready()
        return self._checks

    @property
    def opaque(self) -> Any:
        """`torch.ops.aiter_ops.<name>.default`."""
        self._ready()
        return self._opaque

    # --- slots --------------------------------------------------------------------------------------------------

    def _set_slot(self, fn: Callable[..., Any]) -> None:
        self._slot = self._names["slot"] = fn

    def unresolve(self) -> None:
        """Forget the choice; the next call makes it anew."""
        self._set_slot(self._resolve_and_call)

    def _resolve_and_call(self, *args: Any, **kwargs: Any) -> Any:
        with runtime.lock:
            fn = runtime.resolve(self)
            self._set_slot(fn)
        return fn(*args, **kwargs)

    def _graded(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].is_cuda:
            tracing.warn_once(
                "grad",
                "%s: an input needs grad, so the reference serves (and every op like it); "
                "run inference under torch.inference_mode()",
                self.name,
            )
        if runtime.state.policy.batch_invariant and not self.batch_invariant:
            runtime.note_varies(self)
        for recorder in tracing.recorders:
            recorder.add(self.name, "torch", args, kwargs)
        return self.reference(*args, **kwargs)

    # --- implementations ----------------------------------------------------------------------------------------

    def add(
        self,
        provider: Provider,
        fn: Callable[..., Any],
        requirements: tuple[Requirements, ...],
        predicate: Callable[[Platform], Predicate | None] | None,
        flag: str | None,
        batch_invariant: bool,
        tolerance: Tolerance | None,
    ) -> None:
        """Take a provider's function; `Provider.implements` calls it."""
        require_same_signature(self.name, self._written, provider.name, fn)
        if provider.name in self.implementations_loaded():
            raise ValueError(f"provider {provider.name} implements {self.name} twice")
        ready = codegen.kernel(self.signature, self._defaults, self._check, fn, self.reference, self.opaque)
        if provider.around is not None:
            ready = provider.around(self.signature, ready)
        self._implementations[provider.name] = Implementation(
            self.name, provider.name, ready, requirements, predicate, flag, fn, batch_invariant, tolerance
        )
        self.unresolve()

    def implementations_loaded(self) -> dict[str, Implementation]:
        if "torch" not in self._implementations:
            self._implementations["torch"] = Implementation(
                self.name, "torch", self.reference, (), source=self._written, batch_invariant=self.batch_invariant
            )
        return self._implementations

    @property
    def implementations(self) -> dict[str, Implementation]:
        """Every implementation that can be imported here, by provider, in built-in order."""
        runtime.policy()  # third-party providers are loaded with the settings
        for name in provider_names():
            if name != "torch":
                load_family(get_provider(name), self.family)
        loaded = self.implementations_loaded()
        return {n: loaded[n] for n in provider_names() if n in loaded}

    def on(self, provider: str) -> Callable[..., Any]:
        """That provider's implementation, to be called explicitly; `Refused` where it cannot serve, never another.

        What the policy says of providers is not asked: this call names one.
        """
        served = self.implementations
        get_provider(provider)
        if provider not in served:
            raise Refused(f"{self.name}: provider {provider} has no implementation of it here")
        implementation = served[provider]

        @functools.wraps(self._written)
        def call(*args: Any, **kwargs: Any) -> Any:
            values, named = self.bind(args, kwargs)
            reason = implementation.unmet(platform())
            first = next((v for v in values if isinstance(v, torch.Tensor)), None)
            if (
                reason is None
                and first is not None
                and not (first.is_cuda or platform().triton_interpret)
                and any(r.gpu for r in implementation.requirements)
            ):
                reason = f"the tensors are on {first.device}, not on a GPU"
            if reason is None:
                self.checks(*values, **named)
                reason = implementation.refuses(*values, **named)
            if reason:
                raise Refused(f"{self.name}: {provider} refuses: {reason}")
            return implementation.fn(*values, **named)

        return call

    def bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], on: Platform | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments, defaults and `dtype=None` filled in, as on this machine or another one."""
        bound = inspect.signature(self._written).bind(*args, **kwargs)
        bound.apply_defaults()
        for p in self.signature.params:
            if p.is_fp8_default and bound.arguments[p.name] is None:
                bound.arguments[p.name] = on.fp8_dtype if on else fp8_dtype()
        return bound.args, bound.kwargs

    # --- proof --------------------------------------------------------------------------------------------------

    def samples(
        self, device: str | torch.device = "cpu", seed: int = 0, size: str | None = None, values: bool = True
    ) -> Iterator[Sample]:
        """Named argument sets on `device`; the same seed gives the same numbers. size: ``small``, ``model`` or all.

        Samples are drawn one at a time, and those left out not at all. values: False gives zeros of the same shapes,
        dtypes and strides, for questions that values do not answer.
        """
        for sample in self._samples(Make(device, seed, values, largest=2**20 if size == "small" else None)):
            if size is None or sample.size == size:
                yield sample

    def as_tuple(self, result: Any) -> tuple[torch.Tensor, ...]:
        return result if isinstance(result, tuple) else () if result is None else (result,)

    @property
    def outcome(self) -> tuple[str, ...]:
        """Names of all that a call gives: its results, then the tensors it writes to."""
        return (*self.results, *self.signature.mutates)

    def run(
        self, fn: Callable[..., Any], args: tuple[Any, ...] | list[Any], kwargs: dict[str, Any] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The `outcome` of `fn` for these arguments, which stay as they are: `fn` writes to copies of them."""
        given = dict(zip(self.parameters, args, strict=False)) | (kwargs or {})
        copies = {n: own_copy(given[n]) for n in self.signature.mutates if given.get(n) is not None}
        args = [copies.get(n, v) for n, v in zip(self.parameters, args, strict=False)]
        named = {n: copies.get(n, v) for n, v in (kwargs or {}).items()}
        return (*self.as_tuple(fn(*args, **named)), *copies.values())

    def compare(self, got: Any, want: Any, tolerance: Tolerance | None = None) -> Verdict:
        """Whether two outcomes, as `run` gives them, agree within the op's tolerance, or the one given; tensors not given
        are left out."""
        first, second = self.as_tuple(got), self.as_tuple(want)
        return compare(first, second, self.outcome[: len(second)], tolerance or self.tolerance)

    def cost(self, *args: Any, **kwargs: Any) -> Cost:
        """Bytes and operations of one call: from shapes alone, but for ops that read what other arguments point at."""
        values, named = self.bind(args, kwargs)
        flops = self._flops(*values, **named) if self._flops else 0
        return Cost(self._moved(*values, **named) if self._moved else self._all_bytes(values, named), flops)

    def _all_bytes(self, values: tuple[Any, ...], named: dict[str, Any]) -> int:
        """Every tensor among the arguments read once, every result written once."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        def faked(value: Any) -> Any:
            return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            arguments = {name: faked(value) for name, value in named.items()}
            out = self.as_tuple(self.opaque(*map(faked, values), **arguments))
        given = [v for v in (*values, *named.values()) if isinstance(v, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in (*given, *out))

    def __repr__(self) -> str:
        return f"Op({self.name})"


def op(
    family: str,
    *,
    samples: SampleSource,
    results: tuple[str, ...] = ("out",),
    tolerance: Tolerance = Tolerance(),
    inline: bool = False,
    fake: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
    flops: Callable[..., int] | None = None,
    moved: Callable[..., int] | None = None,
    strided: tuple[str, ...] = (),
    mutates: tuple[str, ...] = (),
    batch_invariant: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the decorated function as an op of `family`; the function returned is what users call.

    samples: yields `Sample`s. results: a name per returned tensor; ``q`` and ``packed`` are codes, ``scale`` fp32.
    inline: the reference is shape-static and free of loops and synchronisation, so the compiler may trace it, and it
    is its own fake; other ops give `fake`. check: same parameters, raises for bad arguments. flops: same parameters.
    moved: same parameters, the bytes that must move where that is not every tensor once (experts no token chose).
    strided: results whose strides the signature decides (all others are contiguous). mutates: tensors written to.
    batch_invariant: on every device the reference gives a row the same bits whatever rows come with it. That holds for
    arithmetic on single elements and for maxima; torch's sums, exponentials and matrix products follow the shape.
    A parameter ``dtype: torch.dtype | None`` means this machine's FP8 format where it is None.
    """

    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        if fn.__name__ in runtime.ops:
            raise ValueError(f"op {fn.__name__} is declared twice")
        made = Op(
            *(fn, family, samples, results, tolerance, inline, fake, check, flops, moved, strided, mutates),
            batch_invariant=batch_invariant,
        )
        runtime.ops[made.name] = made
        return made.entry

    return declare


def get_op(op: str | Callable[..., Any] | Op) -> Op:
    """The `Op` of a name or of a public function. ValueError for an unknown name, with the nearest known one."""
    if isinstance(op, Op):
        return op
    name = op if isinstance(op, str) else getattr(getattr(op, "op", None), "name", repr(op))
    if name not in runtime.ops:
        import difflib

        close = difflib.get_close_matches(name, runtime.ops, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ValueError(f"unknown op {name!r}{hint} known: {', '.join(sorted(runtime.ops))}")
    return runtime.ops[name]


def list_ops() -> tuple[Op, ...]:
    """All ops, by family and name."""
    return tuple(sorted(runtime.ops.values(), key=lambda o: (o.family, o.name)))
