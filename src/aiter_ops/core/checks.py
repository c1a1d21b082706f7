"""Bad arguments, said in one line: the op, the argument, what was given, what is accepted."""

from __future__ import annotations

from typing import Any

import torch


def no_tensor(op: str, name: str, value: Any) -> TypeError:
    return TypeError(f"{op}: {name} is {type(value).__name__}; a torch.Tensor is accepted")


def bad_choice(op: str, name: str, value: Any, choices: tuple[str, ...]) -> ValueError:
    return ValueError(f"{op}: {name}={value!r}; accepted: {', '.join(map(repr, choices))}")


def device_mix(op: str, name: str, tensor: torch.Tensor, first_name: str, first: torch.Tensor) -> ValueError:
    return ValueError(f"{op}: {name} is on {tensor.device}, {first_name} on {first.device}; one device is accepted")


def bad_value(op: str, name: str, value: Any, accepted: str) -> ValueError:
    return ValueError(f"{op}: {name}={value!r}; accepted: {accepted}")


def bad_shape(op: str, name: str, tensor: torch.Tensor, accepted: str) -> ValueError:
    return ValueError(f"{op}: {name} has shape {list(tensor.shape)}; accepted: {accepted}")


def bad_dtype(op: str, name: str, dtype: Any, accepted: tuple[torch.dtype, ...]) -> TypeError:
    names = ", ".join(str(d).removeprefix("torch.") for d in accepted)
    return TypeError(f"{op}: {name} is {str(dtype).removeprefix('torch.')}; accepted: {names}")
