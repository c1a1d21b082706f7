"""bench's peers of attention, MLA, rotary embedding, cache writes and sampling, with stand-ins for their libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from aiter_ops.bench import peers, runner
from aiter_ops.bench.cases import Case, Shapes, cases, kv_cache, mla, paged
from aiter_ops.bench.contenders import Contender
from aiter_ops.bench.inputs import argument_sets
from aiter_ops.bench.peers import torch_attention
from aiter_ops.bench.peers.sequences import Latents
from aiter_ops.core.op import get_op, list_ops

from . import bench_libraries

FAMILIES = ("attention", "mla", "rope", "kv_cache", "sampling")
OPS = [op.name for op in list_ops() if op.family in FAMILIES]


def drawn(case: Case) -> dict[str, Any]:
    return argument_sets(get_op(case.op), case, torch.device("cpu"), 1)[0]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What bench says of a peer at a case."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def check(name: str, peer: str, case: Case) -> Any:
        target = runner.Wanted(get_op(name), case, drawn(case), 1)
        return target.check(Contender(peer, "peer", peers.PEERS[name][peer]))

    return check


@pytest.fixture(scope="module", autouse=True)
def libraries() -> Iterator[None]:
    kept = bench_libraries.declare()
    yield
    for library in kept:
        library._destroy()


def small_cases() -> dict[str, list[Case]]:
    """Small, with the widths that libraries want; several dtypes."""
    found = {name: cases(get_op(name), Shapes(gpu=False)) for name in OPS}
    for name in ("mla_decode", "mla_decode_lse"):
        op = get_op(name)
        found[name] = [mla.decode(op, [130, 64, 33], 4, fp8) for fp8 in (False, True)]
    for name in ("paged_attention", "paged_attention_lse"):
        op = get_op(name)
        found[name] = [paged.attend(op, [40, 100, 3], fp8, heads=paged.SMALL) for fp8 in (False, True)]
        found[name].append(paged.attend(op, [40, 100], False, new=[7, 1], heads=paged.SMALL))
    for name in ("reshape_and_cache", "concat_and_cache_mla", "rope_and_cache", "qk_norm_rope_and_cache"):
        found[name] = [kv_cache.case(get_op(name), count, fp8) for count in (3, 70) for fp8 in (False, True)]
    return found


LIBRARIES = ("vllm", "vllm_main", "sglang", "flash_attn3", "flash_mla", "flash_mla_fp8", "torch")
PEERS = [
    (op, name)
    for op in OPS
    for name in peers.PEERS.get(op, {})
    if name.split(".")[0] in LIBRARIES and name not in ("torch.cudnn", "torch.flash")
]


@pytest.mark.parametrize(("name", "peer"), PEERS)
def test_peers_call_their_libraries_as_those_are(
    name: str, peer: str, checked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is right on at least one case, refuses the others with a reason, and does what the op does each time."""
    monkeypatch.setitem(peers.LOADED, "vllm", None)
    right = 0
    for case in small_cases()[name]:
        try:
            got = checked(name, peer, case)
        except peers.registry.Unsupported:
            continue
        assert got.verdict in ("ok", "rounds"), (case.name, got)
        assert not got.missing
        right += 1
    assert right


def test_torchs_own_attention_computes_the_op(checked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's backend is not here: whichever there is."""
    monkeypatch.setattr(torch_attention, "sdpa_kernel", lambda backend: contextlib.nullcontext())
    op = get_op("flash_attn_varlen")
    for case in cases(op, Shapes(gpu=False)):
        got = checked(op.name, "torch.cudnn", case)
        assert got.verdict in ("ok", "rounds"), got


def test_latents_are_tables_and_lengths_as_engines_have_them() -> None:
    op = get_op("mla_decode")
    kwargs = drawn(mla.decode(op, [130, 64, 33], 4, False))
    of = Latents(kwargs)
    assert (of.lengths.tolist(), of.most, of.tokens, of.indptr.tolist()) == (
        [130, 64, 33],
        130,
        227,
        [0, 130, 194, 227],
    )
    flat = of.cache.reshape(-1, of.width)[of.token_indices().long()]
    same = {**kwargs, "kv_buffer": flat[:, None], "kv_indptr": of.indptr, "page_size": 1}
    same |= {"kv_indices": torch.arange(227, dtype=torch.int32), "kv_last_page_lens": torch.ones(3, dtype=torch.int32)}
    for a, b in zip(op.run(op.reference, (), kwargs), op.run(op.reference, (), same), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(peers.registry.Unsupported, match="without a cap"):
        Latents({**kwargs, "logit_cap": 30.0})
