"""The ops as torch operators: ``torch.ops.aiter_ops``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("aiter_ops", "DEF")


def define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """`Library.define` and `torch.library.register_fake`, which takes half a millisecond an op.

    It looks for the caller's source line and, in a schema that is there, for script objects, which no op has.
    """
    try:
        entry = torch._library.simple_registry.singleton.find(f"aiter_ops::{name}")
        LIBRARY.define(schema)
        entry.fake_impl.register(fake, __name__, lib=LIBRARY)
    except (AttributeError, TypeError):  # no public interface: other releases of torch may have another
        if not hasattr(torch.ops.aiter_ops, name):
            LIBRARY.define(schema)
        torch.library.register_fake(f"aiter_ops::{name}", fake, lib=LIBRARY)
