"""The setting that asks for batch invariance: who is passed over, who is warned about, and what explain shows."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import aiter_ops
from aiter_ops.core import provider as providers
from aiter_ops.core import runtime, tracing

X, W = torch.randn(4, 64), torch.rand(64)


@pytest.fixture
def kernels(environment: pytest.MonkeyPatch) -> Iterator[None]:
    """Provider `kernels`: states batch invariance for silu_and_mul, and not for rms_norm and group_quant."""
    made = aiter_ops.Provider("kernels")
    providers._providers["kernels"] = made

    @made.implements("silu_and_mul", batch_invariant=True)
    def silu_and_mul(x: Tensor, limit: float | None = None) -> Tensor:
        return x[..., ::2] * 2

    @made.implements("rms_norm")
    def rms_norm(
        x: Tensor, weight: Tensor | None, eps: float, weight_offset: float = 0.0, cast_before_weight: bool = False
    ) -> Tensor:
        return x * 2

    @made.implements("mxfp4_quant")
    def mxfp4_quant(x: Tensor, rounding: str = "even") -> tuple[Tensor, Tensor]:
        raise AssertionError("not to be called")

    tracing.forget_warnings()
    yield
    del providers._providers["kernels"]
    for name in ("silu_and_mul", "rms_norm", "mxfp4_quant"):
        del aiter_ops.get_op(name).implementations_loaded()["kernels"]
        aiter_ops.get_op(name).unresolve()


def test_only_what_states_it_is_taken(kernels: None) -> None:
    assert aiter_ops.explain("rms_norm").provider == "kernels"
    with aiter_ops.use(batch_invariant=True):
        assert aiter_ops.explain("silu_and_mul").provider == "kernels"
        decision = aiter_ops.explain("mxfp4_quant")
        assert torch.equal(aiter_ops.silu_and_mul(X), X[..., ::2] * 2)
    why = "not stated to be batch invariant, as AITER_OPS_BATCH_INVARIANT asks"
    assert decision.reasons[-2:] == (("kernels", False, why), ("torch", True, "first in built-in order that serves"))
    assert aiter_ops.explain("mxfp4_quant").provider == "kernels"


def test_the_environment_sets_it_and_use_overrides(kernels: None, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AITER_OPS_BATCH_INVARIANT", "1")
    aiter_ops.reload_settings()
    assert runtime.policy().batch_invariant
    assert aiter_ops.explain("rms_norm").provider == "torch"
    with aiter_ops.use("torch"):
        assert runtime.policy().batch_invariant
    with aiter_ops.use(batch_invariant=False):
        assert aiter_ops.explain("rms_norm").provider == "kernels"
    environment.setenv("AITER_OPS_BATCH_INVARIANT", "yes")
    with pytest.raises(aiter_ops.SettingsError, match="AITER_OPS_BATCH_INVARIANT='yes'; accepted: 0, 1"):
        aiter_ops.reload_settings()
    environment.delenv("AITER_OPS_BATCH_INVARIANT")


def test_a_reference_that_varies_serves_with_one_warning(kernels: None, caplog: pytest.LogCaptureFixture) -> None:
    with aiter_ops.use(batch_invariant=True), caplog.at_level(logging.WARNING, "aiter_ops"):
        decision = aiter_ops.explain("rms_norm")
        for _ in range(2):
            aiter_ops.rms_norm(X, W, 1e-6)
            aiter_ops.layer_norm(X, W, None, 1e-6)
        aiter_ops.mxfp4_quant(X)
        aiter_ops.silu_and_mul(X)
    assert decision.provider == "torch"
    assert "not batch invariant: its sums" in decision.reasons[-1][2]
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("a batch-invariant implementation was requested and is not used for ")
    assert "rms_norm" in text
    assert "add_layer_norm" in text
    assert "the reference of the family norm serves" in text
    counts = {op: n for (op, _, _), n in tracing.passed_over.items()}
    assert counts == {"rms_norm": 2, "layer_norm": 2}


def test_a_preferred_provider_that_does_not_state_it_is_told(kernels: None, caplog: pytest.LogCaptureFixture) -> None:
    with aiter_ops.use("mxfp4_quant=kernels", batch_invariant=True), caplog.at_level(logging.WARNING, "aiter_ops"):
        aiter_ops.mxfp4_quant(X)
    assert "kernels was requested and is not used for mxfp4_quant: not stated to be batch" in caplog.text


def test_strict_refuses_a_reference_that_varies_also_compiled(kernels: None) -> None:
    with aiter_ops.use(strict=True, batch_invariant=True):
        aiter_ops.mxfp4_quant(X)
        with pytest.raises(aiter_ops.Refused, match="torch: strict: its sums, exponentials or matrix products"):
            aiter_ops.rms_norm(X, W, 1e-6)
        with pytest.raises(aiter_ops.Refused, match="per_tensor_quant: no provider serves"):
            aiter_ops.explain("per_tensor_quant", X)
        torch._dynamo.reset()
        compiled = torch.compile(aiter_ops.layer_norm, fullgraph=True, backend="aot_eager")
        with torch.inference_mode(), pytest.raises(aiter_ops.Refused, match="strict"):
            compiled(X, W, None, 1e-6)


def test_strict_preferences_hold_under_compilation_too() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(aiter_ops.rms_norm, fullgraph=True, backend="aot_eager")
    with aiter_ops.use("triton", strict=True), torch.inference_mode(), pytest.raises(aiter_ops.Refused, match="triton"):
        compiled(X, W, 1e-6)


def test_what_compilation_inlines_and_what_needs_grad_is_told_too(
    kernels: None, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    with aiter_ops.use(batch_invariant=True), caplog.at_level(logging.WARNING, "aiter_ops"):
        with torch.inference_mode():
            torch.compile(aiter_ops.layer_norm, fullgraph=True, backend="aot_eager")(X, W, None, 1e-6)
        aiter_ops.gelu_and_mul(X.clone().requires_grad_())
    assert [r.getMessage().rpartition("family ")[2].split()[0] for r in caplog.records] == ["norm", "activation"]


OF_TOKENS = ("rope", "kv_cache")
"""Families whose tokens are in tensors of many shapes; their own tests take batches apart."""

STATED = [op for op in aiter_ops.list_ops() if op.implementations_loaded()["torch"].batch_invariant]
STATED = [op for op in STATED if op.family not in OF_TOKENS]


@pytest.mark.parametrize("op", STATED, ids=lambda op: op.name)
def test_references_that_state_it_give_a_row_the_same_bits_in_any_batch(op: aiter_ops.Op) -> None:
    from tests.providers.batch_invariant import fits, varying

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        samples = [s for s in op.samples(size="small") if fits(op, s)]
        assert len(samples) >= 3
        assert not [text for sample in samples[:3] for text in varying(op, op.reference, sample)]
    finally:
        torch.set_num_threads(before)


def test_a_scale_for_the_whole_tensor_is_seen_to_vary() -> None:
    """The comparison can fail: `per_tensor_quant` does not state batch invariance, and is not."""
    from tests.providers.batch_invariant import varying

    op = aiter_ops.get_op("per_tensor_quant")
    assert not any(i.batch_invariant for i in op.implementations.values())
    assert list(varying(op, op.reference, next(op.samples())))
