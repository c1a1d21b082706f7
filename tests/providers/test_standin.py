"""The stand-in for AITER itself: what it is made of, that it is the release it says, and what of AITER's meaning it follows."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aiter_ops.core.platforms import platform_for
from aiter_ops.providers.aiter import probe
from aiter_ops.providers.aiter.contract.meanings import MEANINGS
from aiter_ops.providers.aiter.contract.table import table

from .standin import KERNELS, NEWEST, at, installed

Install = Callable[..., None]
BF16 = torch.bfloat16
ROOT = Path(__file__).parents[2]


# --- what it is made of -----------------------------------------------------------------------------------------------


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path.name} imports from outside its folder"
    return found


def test_it_imports_nothing_of_the_op_layer_but_the_table() -> None:
    modules = sorted(KERNELS.glob("*.py"))
    assert len(modules) > 15
    for path in modules:
        assert {m.split(".")[0] for m in _imports(path)} <= {"torch", *sys.stdlib_module_names}, path.name
        assert "import_module" not in path.read_text(encoding="utf-8")
    assert {m for m in _imports(KERNELS.parent / "__init__.py") if m.startswith("aiter_ops")} == {
        "aiter_ops.providers.aiter.contract.table"
    }


PROGRAM = """
import importlib.metadata, inspect, sys
import torch, aiter
from aiter.ops.triton.gemm.basic.gemm_a16w16 import gemm_a16w16
out, x = torch.empty(2, 4, dtype=torch.bfloat16), torch.ones(2, 8, dtype=torch.bfloat16)
aiter.silu_and_mul(out, x)
print(importlib.metadata.version("amd-aiter"), inspect.signature(aiter.silu_and_mul), float(out[0, 0]))
print(torch.ops.aiter.silu_and_mul.default._schema)
print(float(gemm_a16w16(x, x)[0, 0]), aiter.QuantType.per_128x128.value, aiter.dtypes.fp8)
print(sorted(m for m in sys.modules if m.split(".")[0] == "aiter_ops"))
"""


def test_it_works_where_the_op_layer_is_not(tmp_path: Path) -> None:
    installed(tmp_path, "0.1.16.post3", "gfx950")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "0.1.16.post3 (*args, **kwargs) 0.73046875",
        "aiter::silu_and_mul(Tensor(a0!) out, Tensor(a1!) input, float limit=0.) -> ()",
        "8.0 5 torch.float8_e4m3fn",
        "[]",
    ], done.stderr


@pytest.mark.parametrize("release", table().releases)
def test_every_release_shows_what_the_table_says(release: str, aiter_trees: Any, install_aiter: Install) -> None:
    """Live, and by the tool that makes the table from sources: modules, parameters, defaults, what decorators hide."""
    install_aiter(platform_for("gfx942", aiter=release))
    rows = at(release)
    for name, row in rows.items():
        function = getattr(importlib.import_module(row.module), name)
        assert probe.unlike(function, name, row) is None, name
        if row.visible != "value":
            hidden = "kwargs" in inspect.signature(function).parameters
            assert hidden == (row.visible == "schema"), name
    assert probe.truncated(importlib.import_module("aiter")) is None or set(probe.CANARY) - set(rows)
    if not any(row.first == release for forms in table().entries.values() for row in forms):
        return  # the sources are those of the release before
    tree = aiter_trees(release, "gfx942")
    found = TOOL.forms(TOOL.from_folder(tree, release)[release])
    assert found == TOOL.forms_known(table())[release]


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("aiter_contract", ROOT / "tools" / "aiter_contract.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


@pytest.mark.parametrize(
    ("release", "activations", "quants"),
    [("0.1.5", 3, 6), ("0.1.7", 4, 6), ("0.1.12", 4, 8), ("0.1.19", 5, 8), (NEWEST, 5, 8)],
)
def test_enums_have_aiters_numbers(release: str, activations: int, quants: int, install_aiter: Install) -> None:
    """csrc/include/aiter_enum.h of the releases."""
    install_aiter(platform_for("gfx942", aiter=release))
    enums = importlib.import_module("aiter.ops.enum")
    names = ["No", "Silu", "Gelu", "Swiglu", "Situv2"][:activations]
    assert {m.name: m.value for m in enums.ActivationType} == {n: i - 1 for i, n in enumerate(names)}
    names = ["No", "per_Tensor", "per_Token", "per_1x32", "per_1x128", "per_128x128", "per_256x128", "per_1024x128"]
    assert {m.name: m.value for m in enums.QuantType} == {n: i for i, n in enumerate(names[:quants])}


# --- meanings that no signature shows ---------------------------------------------------------------------------------


def _norm_with_seventh() -> Any:
    """Whether the seventh argument added 1 to the weight."""
    import aiter

    x, w = torch.randn(2, 64, dtype=BF16), torch.full((64,), 3.0, dtype=BF16)
    out, total = torch.empty_like(x), torch.empty_like(x)
    aiter.rmsnorm2d_fwd_with_add(out, x, x, total, w, 1e-6, 1)
    return round(float((out.float() / torch.nn.functional.rms_norm(total.float(), (64,))).mean()), 1)


def _scored() -> Any:
    """What says softmax in the seventh place."""
    from aiter.ops.topk import grouped_topk

    weights, ids = torch.empty(1, 2), torch.empty(1, 2, dtype=torch.int32)
    try:
        grouped_topk(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), weights, ids, 1, 1, False, True)
    except RuntimeError:
        return "a name"
    return "a truth value" if abs(float(weights[0, 0]) - 0.6439) < 1e-3 else "something else"


def _mx(entry: str, **named: Any) -> Any:
    """The exponent of a block whose largest value is just above that of the codes times a power of two."""
    import aiter

    x = torch.zeros(1, 32, dtype=BF16)
    x[0, 0] = 7.0 if entry == "per_1x32_f4_quant_hip" else 464.0
    return int(getattr(aiter.ops.quant, entry)(x, **named)[1].view(torch.uint8)[0, 0])


def _product_dtype() -> Any:
    import aiter

    fp8 = aiter.dtypes.fp8
    x, w = torch.ones(16, 256).to(fp8), torch.ones(16, 256).to(fp8)
    return aiter.ops.gemm_op_a8w8.gemm_a8w8_bpreshuffle(x, w, torch.ones(16, 1), torch.ones(1, 16)).dtype


def _window_of_two() -> Any:
    import aiter

    q, ends = torch.randn(4, 2, 64, dtype=BF16), torch.tensor([0, 4], dtype=torch.int32)
    try:
        return tuple(aiter.ops.mha.flash_attn_varlen_func(q, q, q, ends, ends, 4, 4, window_size=(-1, -1)).shape)
    except RuntimeError as error:
        return str(error)


def _decode(*late: Any, **named: Any) -> Any:
    from aiter.mla import mla_decode_fwd

    q, cache = torch.randn(1, 16, 576, dtype=BF16), torch.randn(8, 1, 1, 576, dtype=BF16)
    ends, last = torch.tensor([0, 1], dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    keys, pages = torch.tensor([0, 8], dtype=torch.int32), torch.arange(8, dtype=torch.int32)
    out = torch.empty(1, 16, 512, dtype=BF16)
    try:
        return mla_decode_fwd(q, cache, out, ends, keys, pages, last, 1, *late, **named), out
    except RuntimeError as error:
        return str(error)


def _scale_by_position() -> Any:
    torch.manual_seed(0)
    found = _decode(0.05)
    return "a page size" if isinstance(found, str) else "a scale"


def _lse_written() -> Any:
    (_, lse), _ = _decode(sm_scale=0.05, return_lse=True)
    return bool(lse.isfinite().all())


def _unmarked_weights() -> Any:
    """Whether shuffled weights without the mark are read as shuffled ones."""
    from aiter.fused_moe import fused_moe

    torch.manual_seed(0)
    x, w1, w2 = (
        torch.randn(3, 128, dtype=BF16),
        torch.randn(2, 256, 128, dtype=BF16),
        torch.randn(2, 128, 128, dtype=BF16),
    )
    from aiter.ops.shuffle import shuffle_weight

    marked = [shuffle_weight(w) for w in (w1, w2)]
    weights, ids = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int32)
    bare = [w.view(w.shape) for w in marked]
    return torch.equal(fused_moe(x, *bare, weights, ids), fused_moe(x, *marked, weights, ids))


def _paged(max_q: int, **named: Any) -> Any:
    place = "attention." if probe_since("0.1.10") else ""
    function = importlib.import_module(f"aiter.ops.triton.{place}unified_attention").unified_attention
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 64, dtype=BF16), *(torch.randn(4, 16, 1, 64, dtype=BF16) for _ in range(2))
    out, ends = torch.zeros_like(q), torch.tensor([0, 0, 1, 2], dtype=torch.int32)
    used, pages = torch.tensor([5, 7, 9], dtype=torch.int32), torch.arange(3, dtype=torch.int32)[:, None]
    positions = (q[:, :], k, v, out, ends, max_q, used, 9, 0.2, True, (-1, -1), pages, 0.0, None, None, None)
    try:
        function(*positions, **named)
    except (RuntimeError, IndexError):
        return "other rows"
    return out


def probe_since(release: str) -> bool:
    from aiter_standin.package import LOADED

    return LOADED.machine.since(release)


def _one_row_each() -> Any:
    """Whether max_seqlen_q of 1 leaves the rows to cu_seqlens_q."""
    found = _paged(1)
    return isinstance(found, torch.Tensor) and torch.equal(found, _paged(2))


def _biased_weights() -> Any:
    import aiter

    logits, bias = torch.randn(1, 64), torch.full((64,), 300.0)
    weights, ids = torch.empty(1, 2), torch.empty(1, 2, dtype=torch.int32)
    aiter.ops.topk.biased_grouped_topk_hip(logits, bias, weights, ids, 1, 1, False)
    return torch.allclose(weights, torch.sigmoid(logits.gather(1, ids.long())))


def _shuffled_by_default() -> Any:
    """Whether scales come in the order of their shape where nothing is said."""
    from aiter.ops.quant import dynamic_per_token_scaled_quant as quantise

    torch.manual_seed(0)
    x, made = torch.randn(4, 256, dtype=BF16), []
    for named in ({}, {"shuffle_scale": False}):
        out, scales = torch.empty(4, 256, dtype=torch.float8_e4m3fnuz), torch.empty(4, 2)
        quantise(out, x.view(-1, 128), scales, **named)
        made.append(scales)
    return torch.equal(*made)


CHANGES: dict[str, tuple[Callable[[], Any], str, Any, Any]] = {
    "the seventh argument of rmsnorm2d_fwd_with_add": (_norm_with_seventh, "0.1.17", 3.0, 4.0),
    "the scoring of grouped_topk": (_scored, "0.1.5", "a name", "a truth value"),
    "rounding of MXFP4 scales": (lambda: _mx("per_1x32_f4_quant_hip"), "0.1.16", 127, 128),
    "rounding of MXFP8 scales": (
        lambda: _mx("per_1x32_mx_quant_hip", quant_dtype=torch.float8_e4m3fn, scale_type=torch.float8_e8m0fnu),
        "0.1.16",
        127,
        128,
    ),
    "the dtype of gemm_a8w8_bpreshuffle": (_product_dtype, "0.1.6.post2", torch.float16, BF16),
    "windows": (_window_of_two, "0.1.8", (4, 2, 64), "not enough values to unpack"),
    "a scale of mla_decode_fwd by position": (_scale_by_position, "0.1.10.post2", "a scale", "a page size"),
    "the LSE of mla_decode_fwd": (_lse_written, "0.1.13", False, True),
    "weights without a mark": (_unmarked_weights, "0.1.10.post2", True, False),
    "max_seqlen_q of 1": (_one_row_each, "0.1.15.post1", True, False),
    "weights of biased_grouped_topk_hip": (_biased_weights, "0.1.17", False, True),
    "shuffled scales": (_shuffled_by_default, "0.1.5", False, True),
}
"""What -> how to see it, since when it is as it is, and what is seen right before and from then on."""


@pytest.mark.parametrize("what", CHANGES)
def test_meaning_changes_when_it_did(what: str, install_aiter: Install) -> None:
    see, first, before, since = CHANGES[what]
    releases = list(table().releases)
    arch = "gfx950" if "MXFP" in what else "gfx942"
    for release, expected in ((releases[releases.index(first) - 1], before), (first, since), (NEWEST, since)):
        install_aiter(platform_for(arch, aiter=release))
        assert see() == expected, release


def test_every_hidden_change_of_the_table_is_played() -> None:
    hidden = {(m.entry, m.release) for m in MEANINGS if not m.shown}
    assert hidden == {
        ("per_1x32_f4_quant_hip", "0.1.16"),
        ("per_1x32_mx_quant_hip", "0.1.16"),
        ("mla_decode_fwd", "0.1.13"),
        ("fused_moe", "0.1.10.post2"),
        ("unified_attention", "0.1.15.post1"),
        ("biased_grouped_topk_hip", "0.1.17"),
    }
    assert {release for _, release in hidden} <= {first for _, first, *_ in CHANGES.values()}


# --- conventions ------------------------------------------------------------------------------------------------------


def _heads(count: int) -> Any:
    from aiter.mla import mla_decode_fwd

    tables = [torch.tensor(t, dtype=torch.int32) for t in ([0, 1], [0, 4], [0, 1, 2, 3], [1])]
    out = torch.empty(1, count, 512, dtype=BF16)
    return mla_decode_fwd(
        torch.randn(1, count, 576, dtype=BF16), torch.randn(4, 1, 1, 576, dtype=BF16), out, *tables, 1, sm_scale=0.1
    )


def _experts(expert: int) -> Any:
    from aiter.fused_moe import fused_moe

    x, w1, w2 = (
        torch.randn(3, 128, dtype=BF16),
        torch.randn(2, 256, 128, dtype=BF16),
        torch.randn(2, 128, 128, dtype=BF16),
    )
    ids = torch.full((3, 1), expert, dtype=torch.int32)
    return fused_moe(x, w1, w2, torch.ones(3, 1), ids, num_local_tokens=torch.tensor([2]))


def _depth(k: int) -> Any:
    from aiter.ops.gemm_op_a8w8 import gemm_a8w8_CK

    x, w = torch.ones(4, k).to(torch.float8_e4m3fnuz), torch.ones(16, k).to(torch.float8_e4m3fnuz)
    return gemm_a8w8_CK(x, w, torch.ones(4, 1), torch.ones(1, 16))


@pytest.mark.parametrize(
    ("call", "fine", "wrong", "kind"),
    [(_heads, 16, 24, "Abort"), (_experts, 1, 2, "Fault"), (_depth, 64, 72, "Unsupported")],
)
def test_it_fails_as_aiter_does(
    call: Callable[[int], Any], fine: int, wrong: int, kind: str, install_aiter: Install
) -> None:
    """Ends the process; reads outside a tensor; raises."""
    install_aiter(platform_for("gfx942", aiter=NEWEST))
    call(fine)
    with pytest.raises(RuntimeError) as info:
        call(wrong)
    assert type(info.value).__name__ == kind


def test_what_is_not_written_is_no_number(install_aiter: Install) -> None:
    install_aiter(platform_for("gfx942", aiter=NEWEST))
    from aiter.ops.mha import flash_attn_varlen_func

    out = _experts(1)
    assert out[:2].isfinite().all()
    assert out[2].isnan().all()
    q, ends = torch.randn(6, 2, 64, dtype=BF16), torch.tensor([0, 4], dtype=torch.int32)
    out = flash_attn_varlen_func(q, q, q, ends, ends, 4, 4)
    assert out[:4].isfinite().all()
    assert out[4:].isnan().all()
    assert torch.empty(3).isnan().all()  # what an adapter allocates, too
