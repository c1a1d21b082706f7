"""Bad arguments, said in one line: the op, the argument, what was given, what is accepted."""

from __future__ import annotations

import numbers
from typing import Any

import torch

_SCALARS: dict[str, tuple[tuple[type, ...], str]] = {
    "float": ((numbers.Real, torch.SymFloat, torch.SymInt), "a number"),
    "SymInt": ((numbers.Integral, torch.SymInt), "an integer"),
    "bool": ((bool, torch.SymBool), "True or False"),
    "str": ((str,), "a string"),
    "ScalarType": ((torch.dtype,), "a torch.dtype"),
}
"""By type in the schema: what counts as one, symbolic values of the compiler included, and what to call it."""


def no_tensor(op: str, name: str, value: Any) -> TypeError:
    return TypeError(f"{op}: {name} is {type(value).__name__}; a torch.Tensor is accepted")


def _given(name: str, value: Any) -> str:
    """What was given, short: of anything but scalars and short lists the type alone."""
    plain = (str, int, float, complex, torch.dtype, type(None))
    small = isinstance(value, (list, tuple)) and len(value) <= 8 and all(isinstance(v, plain) for v in value)
    return f"{name}={value!r}" if small or isinstance(value, plain) else f"{name} is {type(value).__name__}"


def require_scalar(op: str, name: str, value: Any, kind: str, optional: bool) -> None:
    """TypeError where `value` is none of the schema's type `kind`. True and False count as no numbers."""
    types, accepted = _SCALARS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise TypeError(f"{op}: {_given(name, value)}; accepted: {accepted}{' or None' if optional else ''}")


def require_integers(op: str, name: str, value: Any, length: int) -> None:
    """TypeError where `value` is no list of `length` integers."""
    types = _SCALARS["SymInt"][0]
    good = isinstance(value, (list, tuple)) and len(value) == length
    if not good or not all(isinstance(v, types) and not isinstance(v, bool) for v in value):
        raise TypeError(f"{op}: {_given(name, value)}; accepted: a list of {length} integers")


def bad_choice(op: str, name: str, value: Any, choices: tuple[str, ...]) -> ValueError:
    return ValueError(f"{op}: {_given(name, value)}; accepted: {', '.join(map(repr, choices))}")


def device_mix(op: str, name: str, tensor: torch.Tensor, first_name: str, first: torch.Tensor) -> ValueError:
    return ValueError(f"{op}: {name} is on {tensor.device}, {first_name} on {first.device}; one device is accepted")


def bad_value(op: str, name: str, value: Any, accepted: str) -> ValueError:
    return ValueError(f"{op}: {_given(name, value)}; accepted: {accepted}")


def bad_shape(op: str, name: str, tensor: torch.Tensor, accepted: str) -> ValueError:
    return ValueError(f"{op}: {name} has shape {list(tensor.shape)}; accepted: {accepted}")


def bad_dtype(op: str, name: str, dtype: Any, accepted: tuple[torch.dtype, ...]) -> TypeError:
    names = ", ".join(str(d).removeprefix("torch.") for d in accepted)
    known = isinstance(dtype, torch.dtype)
    given = f"{name} is {str(dtype).removeprefix('torch.')}" if known else _given(name, dtype)
    return TypeError(f"{op}: {given}; accepted: {names}")
