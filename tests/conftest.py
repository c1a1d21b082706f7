"""Shared by all tests: a clean environment, and settings read anew around every test that changes it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

for name in [n for n in os.environ if n.startswith(("AITER_OPS", "VLLM_ROCM_"))]:
    del os.environ[name]

import aiter_ops  # noqa: E402 - the environment comes first

torch.set_num_threads(1)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Set variables on it, then call `aiter_ops.reload_settings()`; undone afterwards."""
    with monkeypatch.context() as patch:
        yield patch
    aiter_ops.reload_settings()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))
