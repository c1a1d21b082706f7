"""What is made of a tensor once and kept beside it, for as long as it lives and is not written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Kept:
    """Tensors made of other tensors. Nothing is kept in compiled code, of tensors without a version (inference mode),
    or of what a capture of a CUDA graph makes, whose memory is the graph's.
    """

    def __init__(self) -> None:
        self._held: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor, made_by: tuple[Any, ...], make: Callable[[Tensor], Tensor]) -> Tensor:
        """`make(tensor)`. made_by: what else `make` depends on."""
        plain = type(tensor) in (Tensor, torch.nn.Parameter)
        if torch.compiler.is_compiling() or not plain or tensor.is_inference():
            return make(tensor)
        key = (tensor._version, *made_by)
        held = self._held.get(tensor)
        if held is not None and held[0] == key:
            found: Tensor = held[1]
            return found
        made = make(tensor)
        if not (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._held[tensor] = key, made
        return made
