"""The comparison with vLLM's class: the tool, its table in the docs, and vLLM's class itself where it is installed."""

from __future__ import annotations

import importlib.util
import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.schemas import ROWS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_conformance", ROOT / "tools" / "vllm_conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SOURCE = """
def _impl(q: Tensor, kv_buffer: Tensor) -> Tensor: ...
class rocm_aiter_ops:
    _FLAG = True
    @classmethod
    def is_enabled(cls) -> bool: ...
    @staticmethod
    def rms_norm(x, weight, variance_epsilon): ...
    @staticmethod
    def shuffle_weights(*tensors, layout=(16, 16)): ...
    @staticmethod
    def w8a8_gemm(A, B, As, Bs, bias=None, output_dtype=torch.bfloat16): ...
    @staticmethod
    def brand_new(x): ...
    @staticmethod
    def register_ops_once():
        direct_register_custom_op(op_name="rocm_aiter_mla_decode_fwd", op_func=_impl, mutates_args=["o"])
        direct_register_custom_op(op_name="rocm_aiter_group_fp8_quant", op_func=other, mutates_args=["x"])
"""


def test_differences_are_seen(tool: ModuleType):
    found = {name: difference for name, difference, _ in tool.compare(SOURCE)}
    assert found["is_enabled"] == found["shuffle_weights"] == ""
    assert found["rms_norm"] == "variance_epsilon=required is epsilon=required"
    assert found["w8a8_gemm"] == "output_dtype=torch.bfloat16 is output_dtype=torch.float16"
    assert found["brand_new"] == "not here"
    assert found["op rocm_aiter_mla_decode_fwd"].startswith("o is added; qo_indptr is added")
    assert found["op rocm_aiter_group_fp8_quant"] == "writes , not x"


def test_a_wheel_a_tree_and_a_file_are_read(tool: ModuleType, tmp_path: Path):
    file = tmp_path / tool.FILE
    file.parent.mkdir()
    file.write_text(SOURCE, encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "vllm.whl", "w") as wheel:
        wheel.writestr(tool.FILE, SOURCE)
    assert {tool.source_of(str(p)) for p in (tmp_path, file, tmp_path / "vllm.whl")} == {SOURCE}


def test_the_table_is_of_this_class(tool: ModuleType):
    page = (ROOT / "docs" / "rocm-aiter-ops.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`( \(op\))? \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    assert len(rows) > 150
    for name, is_op, stands_for, difference, reason in rows:
        known = f"op {name}" if is_op else name
        if difference == "not here":
            assert reason
            continue
        assert name in {row.op for row in ROWS.values()} if is_op else hasattr(rocm_aiter_ops, name)
        assert stands_for == tool._stands_for(known)
        assert bool(difference) == bool(reason), name
    listed = {name for name, is_op, *_ in rows if not is_op}
    assert listed == {n for n in vars(rocm_aiter_ops) if not n.startswith("_")}


def test_the_installed_vllm(tool: ModuleType):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    assert [row for row in tool.compare(tool.source_of(None)) if row[1] and not row[2]] == []
