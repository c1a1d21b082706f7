"""Functions written from an op's signature: no ``*args``, nothing bound or looked up per call.

A generated function is ordinary Python: it shows in tracebacks and torch.compile traces through it.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import maybe_current_level
from torch._guards import TracingContext
from torch.compiler import is_dynamo_compiling

from .checks import bad_choice, bad_value, device_mix, no_tensor, require_integers, require_scalar
from .schema import Signature

_NAMES: dict[str, Any] = {
    "Tensor": torch.Tensor,
    "plain": frozenset({torch.Tensor, torch.nn.Parameter}),
    "is_dynamo_compiling": is_dynamo_compiling,
    "dispatch_modes": _len_torch_dispatch_stack,
    "functorch_level": maybe_current_level,
    "grad_enabled": torch.is_grad_enabled,
    "bad_choice": bad_choice,
    "bad_value": bad_value,
    "device_mix": device_mix,
    "no_tensor": no_tensor,
    "require_integers": require_integers,
    "require_scalar": require_scalar,
    "torch_dtype": torch.dtype,
}

_USUAL_TYPES = {
    "float": ("float", "int"),
    "SymInt": ("int",),
    "bool": ("bool",),
    "str": ("str",),
    "ScalarType": ("torch_dtype",),
}
"""Types that pass without a call, by type in the schema; what else passes is `require_scalar`'s to say."""

_TAKEN = frozenset(
    {*_NAMES, "ready", "entry", "written", "slot", "graded", "slow", "reference", "opaque", "autograd"}
) | {*("checks", "check", "fn", "fake", "inlines", "state", "error", "below")}
"""Names in the namespace of an op's functions, so not for its parameters."""

_UNWRITTEN = compile(
    "def entry(*args, **kwargs):\n    ready()\n    return written(*args, **kwargs)\n", "<aiter_ops first call>", "exec"
)


def _run(role: str, name: str, source: str, namespace: dict[str, Any]) -> None:
    """Define the functions of `source` in `namespace`, which stays their globals."""
    filename = f"<aiter_ops {role} {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)  # noqa: S102 - the source is written here, from a signature


def build(role: str, sig: Signature, body: str, names: dict[str, Any]) -> Any:
    """One function with the op's signature; `names` are what its body refers to."""
    namespace = {**_NAMES, **sig.defaults, **names}
    _run(role, sig.name, f"def {sig.name}({sig.header}):\n{body}", namespace)
    return namespace[sig.name]


def _any(sig: Signature, test: str) -> str:
    """`test` (with {t} for the tensor) over all tensor parameters, None passed over."""
    parts = [(p, test.replace("{t}", p.name)) for p in sig.tensors]
    return " or ".join([f"({p.name} is not None and {t})" if p.optional else t for p, t in parts])


def _dtype_lines(sig: Signature) -> str:
    return "".join(
        f"    if {p.name} is None:\n        {p.name} = default_{p.name}()\n" for p in sig.params if p.is_fp8_default
    )


def _graded(sig: Signature) -> str:
    return f"grad_enabled() and ({_any(sig, '{t}.requires_grad')})"


def entry(sig: Signature, ready: Callable[[], bool]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What users call, not written yet, and its namespace: what a function there calls is looked up in it by name.

    Declaring an op is part of every import, so nothing is compiled for it. The first call, eager or traced by
    torch.compile, asks ``ready``, which has `write` called, and goes on in what was written; every later one is that.
    """
    if taken := _TAKEN & {p.name for p in sig.params}:
        raise TypeError(f"{sig.name}: parameter names {sorted(taken)} are taken by the generated code")
    namespace: dict[str, Any] = {"ready": ready}
    exec(_UNWRITTEN, namespace)  # noqa: S102 - the source is above
    fn = namespace["entry"]
    # a code object of its own: torch.compile counts by code object, and gives one up that it compiled too often
    fn.__code__ = fn.__code__.replace(co_name=sig.name)
    return fn, namespace


def write(sig: Signature, namespace: dict[str, Any], checked: bool, strided: tuple[int, ...], faked: bool) -> None:
    """Write the functions of an op into the namespace that `entry` gave.

    written: what `entry` calls until `settle` gives it this code.

    entry: runs ``slot`` unless compilation, a mode, a subclass or a gradient is involved.
    slow: where compilation and modes go: the reference if it may be traced or must be differentiated, else the
    ``opaque`` op.
    autograd: the Autograd kernel of the opaque op, which has no derivative and raises ``error`` rather than lose one.
    checks: raises for arguments that are not accepted, and does nothing else.
    reference: the function as written (``fn``), arguments checked, dtype resolved, every result contiguous. Where the
    op has a ``fake`` of its own, tensors without data go to that: the reference may look at values.
    """
    namespace.update(_NAMES | sig.defaults)
    first = sig.tensors[0].name
    others = Signature(sig.name, tuple(p for p in sig.params if p.name != first), 0)
    special = f"type({first}) is not Tensor" + (
        " or " + _any(others, "type({t}) not in plain") if others.tensors else ""
    )
    asked = f"    check({sig.call})\n" if checked else ""
    source = (
        f"def {sig.name}({sig.header}):\n{_dtype_lines(sig)}"
        f"    if is_dynamo_compiling() or dispatch_modes() or {special}:\n        return slow({sig.call})\n"
        f"    if {_graded(sig)}:\n        return graded({sig.call})\n"
        f"    return slot({sig.call})\n\n"
        f"def slow({sig.header}):\n{_tensor_checks(sig)}{_scalar_checks(sig)}"
        f"    if {_graded(sig)}:\n        return reference({sig.call})\n"
        f"    if is_dynamo_compiling() and inlines({sig.name!r}, state.token, {first}.device.type):\n"
        f"        return reference({sig.call})\n"
        f"    return opaque({sig.call})\n\n"
        f"def autograd({sig.header}):\n    if {_graded(sig)}:\n        raise error\n"
        f"    with below():\n        return opaque({sig.call})\n\n"
        f"def checks({sig.header}):\n{_checks(sig)}{asked}\n"
        f"def reference({sig.header}):\n{_checks(sig)}{asked}"
    )
    if faked:
        source += f"    if {first}.is_meta:\n        return fake({sig.call})\n"
    if sig.results == 0:
        source += f"    fn({sig.call})\n"
    elif sig.results == 1:
        source += f"    return fn({sig.call}){'' if 0 in strided else '.contiguous()'}\n"
    else:
        outs = [f"out{i}" for i in range(sig.results)]
        done = [n if i in strided else f"{n}.contiguous()" for i, n in enumerate(outs)]
        source += f"    {', '.join(outs)} = fn({sig.call})\n    return {', '.join(done)}\n"
    _run("op", sig.name, source, namespace)
    namespace["written"] = namespace[sig.name]


def settle(namespace: dict[str, Any]) -> None:
    """Give ``entry`` the code of what was written, unless torch.compile met it before: of a function that it has met it
    keeps the parameters it saw, and calls in the same trace, or in one after it, would not fit. Then ``entry`` goes on
    calling ``written``, which costs eager calls a tenth of a microsecond or two.
    """
    fn, written = namespace["entry"], namespace["written"]
    if fn.__code__ is written.__code__ or "traced" in namespace:
        return
    if TracingContext.try_get() is not None:
        namespace["traced"] = True
        return
    # the code last: until then a call in another thread waits in `ready`
    fn.__defaults__, fn.__kwdefaults__ = written.__defaults__, written.__kwdefaults__
    fn.__code__ = written.__code__


def _scalar_checks(sig: Signature) -> str:
    lines = ""
    for p in sig.params:
        absent = f"{p.name} is not None and " if p.optional else ""
        if p.length:
            lines += f"    require_integers({sig.name!r}, {p.name!r}, {p.name}, {p.length})\n"
        elif p.choices:
            lines += (
                f"    if {absent}(type({p.name}) is not str or {p.name} not in {p.choices!r}):\n"
                f"        raise bad_choice({sig.name!r}, {p.name!r}, {p.name}, {p.choices!r})\n"
            )
        elif not (p.is_tensor or p.is_fp8_default):  # of its own dtypes every op has a check
            unusual = " and ".join(f"type({p.name}) is not {t}" for t in _USUAL_TYPES[p.type])
            lines += (
                f"    if {absent}{unusual}:\n"
                f"        require_scalar({sig.name!r}, {p.name!r}, {p.name}, {p.type!r}, {p.optional})\n"
            )
        if p.is_eps:
            lines += (
                f"    if {absent}not {p.name} >= 0:\n"
                f"        raise bad_value({sig.name!r}, {p.name!r}, {p.name}, 'a number >= 0')\n"
            )
    return lines


def _tensor_checks(sig: Signature) -> str:
    return "".join(
        f"    if {f'{p.name} is not None and ' if p.optional else ''}not isinstance({p.name}, Tensor):\n"
        f"        raise no_tensor({sig.name!r}, {p.name!r}, {p.name})\n"
        for p in sig.tensors
    )


def _checks(sig: Signature) -> str:
    """What holds for every op: types, strings from their closed sets, eps >= 0, all tensors on one device."""
    first = sig.tensors[0].name
    lines = _dtype_lines(sig) + _tensor_checks(sig) + _scalar_checks(sig)
    for p in sig.tensors:
        absent = f"{p.name} is not None and " if p.optional else ""
        if p.name != first:
            lines += (
                f"    if {absent}{p.name}.device != {first}.device:\n"
                f"        raise device_mix({sig.name!r}, {p.name!r}, {p.name}, {first!r}, {first})\n"
            )
    return lines


def kernel(sig: Signature, defaults: dict[str, Any], check: Any, fn: Any, reference: Any, opaque: Any) -> Any:
    """A provider's function as the layer runs it: checked; nothing to compute goes to the reference, not to a kernel;
    inside a functorch transform the opaque op is called, which functorch takes apart into plain calls.
    """
    body = (
        f"{_checks(sig)}"
        f"    if functorch_level() is not None:\n        return opaque({sig.call})\n"
        + (f"    check({sig.call})\n" if check else "")
        + f"    if {sig.tensors[0].name}.numel() == 0:\n        return reference({sig.call})\n"
        f"    return fn({sig.call})\n"
    )
    cells = {**defaults, "check": check, "fn": fn, "reference": reference, "opaque": opaque}
    return build("implementation", sig, body, cells)


def chain(sig: Signature, links: list[tuple[Any, Any, Any]], end: Any, checks: Any) -> Callable[..., Any]:
    """A slot that asks predicates in order: the first (predicate, note, fn) that accepts serves, else `end`.

    A predicate sees arguments before they are checked; where it fails on them, `checks` has the first word.
    """
    body, cells = "", {"end": end, "checks": checks}
    for i, (predicate, note, fn) in enumerate(links):
        body += (
            f"    try:\n        reason{i} = accepts{i}({sig.call})\n"
            f"    except Exception:\n        checks({sig.call})\n        raise\n"
            f"    if reason{i} is None:\n"
            f"        return serve{i}({sig.call})\n    note{i}(reason{i})\n"
        )
        cells.update({f"accepts{i}": predicate, f"note{i}": note, f"serve{i}": fn})
    fn_: Callable[..., Any] = build("slot", sig, body + f"    return end({sig.call})\n", cells)
    return fn_


def by_device(sig: Signature, gpu: Any, other: Any) -> Callable[..., Any]:
    """A slot that splits by where the first tensor lives, on machines that have a GPU."""
    body = f"    if {sig.tensors[0].name}.is_cuda:\n        return gpu({sig.call})\n    return other({sig.call})\n"
    fn: Callable[..., Any] = build("device slot", sig, body, {"gpu": gpu, "other": other})
    return fn


def before(sig: Signature, hook: Any, fn: Any) -> Callable[..., Any]:
    """`fn` with `hook` called first on the same arguments (recording)."""
    body = f"    hook({sig.call})\n    return fn({sig.call})\n"
    built: Callable[..., Any] = build("recorded", sig, body, {"hook": hook, "fn": fn})
    return built
