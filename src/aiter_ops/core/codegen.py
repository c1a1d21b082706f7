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
from torch.compiler import is_dynamo_compiling

from .checks import bad_choice, device_mix, no_tensor
from .schema import Signature

_NAMES: dict[str, Any] = {
    "Tensor": torch.Tensor,
    "plain": frozenset({torch.Tensor, torch.nn.Parameter}),
    "is_dynamo_compiling": is_dynamo_compiling,
    "dispatch_modes": _len_torch_dispatch_stack,
    "functorch_level": maybe_current_level,
    "grad_enabled": torch.is_grad_enabled,
    "bad_choice": bad_choice,
    "device_mix": device_mix,
    "no_tensor": no_tensor,
}


def _build(role: str, sig: Signature, body: str, cells: dict[str, Any], extra: str = "") -> Any:
    """Run the source of one factory: `cells` become closure variables of the function(s) it returns."""
    names = {**cells, **sig.defaults}
    source = (
        f"def factory({', '.join([*_NAMES, *names])}):\n    def {sig.name}({sig.header}):\n{body}"
        f"{extra}    return {sig.name}{', set_slot' if extra else ''}\n"
    )
    filename = f"<aiter_ops {role} {sig.name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace)  # noqa: S102 - the source is written above, from a signature
    return namespace["factory"](**_NAMES, **names)


def _any(sig: Signature, test: str) -> str:
    """`test` (with {t} for the tensor) over all tensor parameters, None passed over."""
    parts = [test.format(t=p.name) for p in sig.tensors]
    return " or ".join(
        f"({p.name} is not None and {t})" if p.optional else t for p, t in zip(sig.tensors, parts, strict=True)
    )


def _dtype_lines(sig: Signature) -> str:
    return "".join(
        f"        if {p.name} is None:\n            {p.name} = default_{p.name}()\n"
        for p in sig.params
        if p.is_fp8_default
    )


def entry(
    sig: Signature, defaults: dict[str, Any], slow: Callable[..., Any], graded: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[[Callable[..., Any]], None]]:
    """The public function of an op, and the setter of its slot.

    Anything but plain tensors in plain eager mode goes to `slow`; inputs that need grad go to `graded`.
    """
    first = sig.tensors[0].name
    others = Signature(sig.name, tuple(p for p in sig.params if p.name != first), 0)
    special = f"type({first}) is not Tensor" + (
        " or " + _any(others, "type({t}) not in plain") if others.tensors else ""
    )
    body = (
        f"{_dtype_lines(sig)}"
        f"        if is_dynamo_compiling() or dispatch_modes() or {special}:\n            return slow({sig.call})\n"
        f"        if grad_enabled() and ({_any(sig, '{t}.requires_grad')}):\n            return graded({sig.call})\n"
        f"        return slot({sig.call})\n"
    )
    setter = "    def set_slot(fn):\n        nonlocal slot\n        slot = fn\n"
    cells = {**defaults, "slow": slow, "graded": graded, "slot": None}
    built: tuple[Callable[..., Any], Callable[[Callable[..., Any]], None]] = _build("entry", sig, body, cells, setter)
    return built


def slow_path(sig: Signature, reference: Any, opaque: Any, inlines: Any, state: Any) -> Callable[..., Any]:
    """Where compilation, modes, transforms and subclasses go: the reference if it may be traced, else the opaque op."""
    types = "".join(
        f"        if {f'{p.name} is not None and ' if p.optional else ''}not isinstance({p.name}, Tensor):\n"
        f"            raise no_tensor({sig.name!r}, {p.name!r}, {p.name})\n"
        for p in sig.tensors
    )
    body = (
        f"{types}"
        f"        if grad_enabled() and ({_any(sig, '{t}.requires_grad')}):\n            return reference({sig.call})\n"
        f"        if is_dynamo_compiling() and inlines({sig.name!r}, state.token, {sig.tensors[0].name}.device.type):\n"
        f"            return reference({sig.call})\n"
        f"        return opaque({sig.call})\n"
    )
    fn: Callable[..., Any] = _build(
        "slow path", sig, body, {"reference": reference, "opaque": opaque, "inlines": inlines, "state": state}
    )
    return fn


def autograd(sig: Signature, opaque: Any, below: Any, error: Any) -> Callable[..., Any]:
    """The Autograd kernel of the opaque op: it has no derivative and says so instead of losing one."""
    body = (
        f"        if grad_enabled() and ({_any(sig, '{t}.requires_grad')}):\n            raise error\n"
        f"        with below():\n            return opaque({sig.call})\n"
    )
    fn: Callable[..., Any] = _build("autograd", sig, body, {"opaque": opaque, "below": below, "error": error})
    return fn


def _checks(sig: Signature) -> str:
    first = sig.tensors[0].name
    lines = _dtype_lines(sig)
    for p in sig.params:
        absent = f"{p.name} is not None and " if p.optional else ""
        if p.choices:
            lines += (
                f"        if {absent}{p.name} not in {p.choices!r}:\n"
                f"            raise bad_choice({sig.name!r}, {p.name!r}, {p.name}, {p.choices!r})\n"
            )
        if p.is_tensor:
            lines += (
                f"        if {absent}not isinstance({p.name}, Tensor):\n"
                f"            raise no_tensor({sig.name!r}, {p.name!r}, {p.name})\n"
            )
        if p.is_tensor and p.name != first:
            lines += (
                f"        if {absent}{p.name}.device != {first}.device:\n"
                f"            raise device_mix({sig.name!r}, {p.name!r}, {p.name}, {first!r}, {first})\n"
            )
    return lines


def reference(sig: Signature, defaults: dict[str, Any], check: Any, fn: Any, strided: tuple[int, ...]) -> Any:
    """The reference as the layer runs it: arguments checked, dtype resolved, every result contiguous."""
    if sig.results == 0:
        finish = f"        fn({sig.call})\n"
    elif sig.results == 1:
        finish = f"        return fn({sig.call}){'' if 0 in strided else '.contiguous()'}\n"
    else:
        names = [f"out{i}" for i in range(sig.results)]
        done = [n if i in strided else f"{n}.contiguous()" for i, n in enumerate(names)]
        finish = f"        {', '.join(names)} = fn({sig.call})\n        return {', '.join(done)}\n"
    call = f"        check({sig.call})\n" if check else ""
    return _build("reference", sig, _checks(sig) + call + finish, {**defaults, "check": check, "fn": fn})


def kernel(sig: Signature, defaults: dict[str, Any], check: Any, fn: Any, reference: Any, opaque: Any) -> Any:
    """A provider's function as the layer runs it: checked; nothing to compute goes to the reference, not to a kernel;
    inside a functorch transform the opaque op is called, which functorch takes apart into plain calls.
    """
    body = (
        f"{_checks(sig)}"
        f"        if functorch_level() is not None:\n            return opaque({sig.call})\n"
        + (f"        check({sig.call})\n" if check else "")
        + f"        if {sig.tensors[0].name}.numel() == 0:\n            return reference({sig.call})\n"
        f"        return fn({sig.call})\n"
    )
    cells = {**defaults, "check": check, "fn": fn, "reference": reference, "opaque": opaque}
    return _build("implementation", sig, body, cells)


def chain(sig: Signature, links: list[tuple[Any, Any, Any]], end: Any) -> Callable[..., Any]:
    """A slot that asks predicates in order: the first (predicate, note, fn) that accepts serves, else `end`."""
    body, cells = "", {"end": end}
    for i, (predicate, note, fn) in enumerate(links):
        body += (
            f"        reason{i} = accepts{i}({sig.call})\n        if reason{i} is None:\n"
            f"            return serve{i}({sig.call})\n        note{i}(reason{i})\n"
        )
        cells.update({f"accepts{i}": predicate, f"note{i}": note, f"serve{i}": fn})
    fn_: Callable[..., Any] = _build("slot", sig, body + f"        return end({sig.call})\n", cells)
    return fn_


def by_device(sig: Signature, gpu: Any, other: Any) -> Callable[..., Any]:
    """A slot that splits by where the first tensor lives, on machines that have a GPU."""
    body = f"        if {sig.tensors[0].name}.is_cuda:\n            return gpu({sig.call})\n        return other({sig.call})\n"
    fn: Callable[..., Any] = _build("device slot", sig, body, {"gpu": gpu, "other": other})
    return fn


def before(sig: Signature, hook: Any, fn: Any) -> Callable[..., Any]:
    """`fn` with `hook` called first on the same arguments (recording)."""
    body = f"        hook({sig.call})\n        return fn({sig.call})\n"
    built: Callable[..., Any] = _build("recorded", sig, body, {"hook": hook, "fn": fn})
    return built
