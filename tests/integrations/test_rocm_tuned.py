"""The predicates about AITER's tuned sizes, on a package of files that stands for AITER's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core import platforms
from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops, tuned

r: Any = rocm_aiter_ops
FN = torch.float8_e4m3fn


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gfx950 with 256 units and an AITER that has only its tables."""
    for name in tuned.TABLES:
        monkeypatch.delenv(name, raising=False)
    be(monkeypatch, tmp_path)
    return tmp_path


def be(monkeypatch: pytest.MonkeyPatch, root: Path | None, arch: str = "gfx950", units: int = 256) -> None:
    where = None if root is None else str(root)
    machine = aiter_ops.platform_for(arch, aiter="0.1.20", aiter_root=where, compute_units=units)
    monkeypatch.setattr(platforms, "platform", lambda: machine)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def configuration(folder: Path, name: str, *keys: str) -> None:
    write(folder / f"{name}.json", json.dumps({key: {"BLOCK_SIZE_M": 16} for key in keys}))


def test_triton_sizes_have_a_file_of_their_own(root: Path, monkeypatch: pytest.MonkeyPatch):
    flat = root / "ops" / "triton" / "configs" / "gemm"
    assert not r.is_triton_gemm_w8a8_tuned(512, 7168)
    assert "no configuration GEMM-A8W8_BLOCKSCALE for gfx950" in r.why_off("is_triton_gemm_w8a8_tuned", 512, 7168)
    configuration(flat, "gfx950-GEMM-A8W8_BLOCKSCALE-N=512-K=7168", "M_LEQ_256", "any")
    assert not r.is_triton_gemm_w8a8_tuned(512, 7168)  # AITER needs its default file beside it
    configuration(flat, "gfx950-GEMM-A8W8_BLOCKSCALE", "any")
    assert r.is_triton_gemm_w8a8_tuned(n=512, k=7168) is True
    assert r.why_off("is_triton_gemm_w8a8_tuned", 512, 7168) is None
    assert r.is_triton_gemm_w8a8_tuned(7168, 512) is False
    configuration(flat, "gfx950-GEMM-A8W8_BLOCKSCALE-N=1-K=2", "any")
    assert not r.is_triton_gemm_w8a8_tuned(1, 2)
    configuration(flat, "gfx950-GEMM-A8W8_BLOCKSCALE-N=1-K=2", "M_LEQ_64", "any")
    assert not r.is_triton_gemm_w8a8_tuned(1, 2)  # asked for 128 rows
    configuration(flat, "gfx950-GEMM-A8W8_BLOCKSCALE-N=1-K=2", "M_GEQ_64", "any")
    assert r.is_triton_gemm_w8a8_tuned(1, 2)
    be(monkeypatch, root, "gfx942")
    assert not r.is_triton_gemm_w8a8_tuned(512, 7168)


def test_the_newer_place_of_configurations_comes_first(root: Path):
    configs = root / "ops" / "triton" / "configs"
    configuration(configs / "gemm", "gfx950-GEMM-AFP4WFP4_PRESHUFFLED", "any")
    configuration(configs / "gemm", "gfx950-GEMM-AFP4WFP4_PRESHUFFLED-N=8-K=64", "M_LEQ_256")
    assert r.is_triton_gemm_afp4wfp4_presh_ws_tuned(8, 32)  # bytes: two codes each
    assert not r.is_triton_gemm_afp4wfp4_presh_ws_tuned(8, 64)
    nested = configs / "gfx950" / "triton" / "gemm" / "gemm_afp4wfp4_preshuffled"
    configuration(nested, "DEFAULT", "any")
    assert not r.is_triton_gemm_afp4wfp4_presh_ws_tuned(8, 32)
    configuration(nested, "GEMM-AFP4WFP4_PRESHUFFLED-N=8-K=64", "M_LEQ_256")
    assert r.is_triton_gemm_afp4wfp4_presh_ws_tuned(8, 32)
    configuration(configs / "gemm", "gfx950-GEMM-A8W8_BLOCKSCALE_PRESHUFFLED", "any")
    configuration(configs / "gemm", "gfx950-GEMM-A8W8_BLOCKSCALE_PRESHUFFLED-N=3-K=4", "M_LEQ_1")
    assert r.is_triton_blockscale_bpreshuffle_gemm_tuned(3, 4)


HEAD = "gfx,cu_num,M,N,K,q_dtype_w,us\n"


def test_rows_of_a_table(root: Path, monkeypatch: pytest.MonkeyPatch):
    own = root / "configs" / "a8w8_tuned_gemm.csv"
    write(own, HEAD + "gfx950,256,16,1280,8192,torch.float8_e4m3fn,1\ngfx942,256,16,1,2,torch.int8,1\n")
    assert r.is_per_token_w8a8_gemm_tuned(1280, 8192, FN) is True
    for other in ((1280, 8192, torch.int8), (8192, 1280, FN), (1, 2, torch.int8)):
        assert r.is_per_token_w8a8_gemm_tuned(*other) is False
    assert "no entry for N=1280, K=8192, torch.int8 on gfx950 with 256 compute units" in r.why_off(
        "is_per_token_w8a8_gemm_tuned", 1280, 8192, torch.int8
    )
    assert not r.is_shuffled_per_token_w8a8_gemm_tuned(1280, 8192, FN)
    be(monkeypatch, root, units=304)
    assert not r.is_per_token_w8a8_gemm_tuned(1280, 8192, FN)
    be(monkeypatch, root, units=0)
    assert "compute units is not known" in r.why_off("is_per_token_w8a8_gemm_tuned", 1280, 8192, FN)


def test_tables_of_models_belong_to_it_and_a_variable_replaces_all(root: Path, monkeypatch: pytest.MonkeyPatch):
    row = "gfx950,256,{},6144,5120,torch.float8_e4m3fn,1\n"
    models = root / "configs" / "model_configs"
    write(models / "a8w8_bpreshuffle_tuned_gemm_glm.csv", HEAD + row.format(2048))
    write(models / "a8w8_bpreshuffle_untuned_gemm_glm.csv", HEAD + row.format(1).replace("6144", "7"))
    assert r.is_shuffled_per_token_w8a8_gemm_tuned(6144, 5120, FN)
    assert not r.is_shuffled_per_token_w8a8_gemm_tuned(7, 5120, FN)
    write(root / "mine.csv", "cu_num,M,N,K,q_dtype_w\n256,1,9,32,torch.int8\n")
    monkeypatch.setenv("AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE", f"{root}/absent.csv:{root}/mine.csv")
    assert not r.is_shuffled_per_token_w8a8_gemm_tuned(6144, 5120, FN)
    assert r.is_shuffled_per_token_w8a8_gemm_tuned(9, 32, torch.int8)


def test_mxfp4_needs_rows_for_two_sizes(root: Path):
    write(root / "configs" / "a4w4_blockscale_tuned_gemm.csv", "gfx,cu_num,M,N,K\ngfx950,256,1024,512,4096\n")
    assert not r.is_asm_fp4_gemm_tuned(512, 2048)
    write(
        root / "configs" / "model_configs" / "dsv3_a4w4_blockscale_tuned_gemm.csv",
        "gfx,cu_num,M,N,K\ngfx950,256,8192,512,4096\n",
    )
    tuned._read.cache_clear()
    assert r.is_asm_fp4_gemm_tuned(512, 2048)
    assert not r.is_asm_fp4_gemm_tuned(512, 4096)


@pytest.mark.parametrize(
    ("m", "n", "want"),
    [
        (1, 64, {1, 16}),
        (17, 64, {17, 32}),
        (257, 64, {257, 288, 512}),
        (1025, 64, {1025, 1088, 2048}),
        (8193, 4096, {8193, 8320, 16384}),
        (8193, 4097, {8193, 8320, 8192}),
    ],
)
def test_rows_that_serve_another_m(m: int, n: int, want: set[int]):
    assert set(tuned._padded(m, n)) == want


def test_without_aiter_or_its_files_there_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    be(monkeypatch, None)
    assert "are not known" in r.why_off("is_triton_gemm_w8a8_tuned", 1, 1)
    assert "are not known" in r.why_off("is_per_token_w8a8_gemm_tuned", 1, 1, FN)
    monkeypatch.setattr(platforms, "platform", lambda: aiter_ops.platform_for("gfx950"))
    assert "not installed" in r.why_off("is_asm_fp4_gemm_tuned", 1, 1)
    with pytest.raises(TypeError, match="missing"):
        r.why_off("is_asm_fp4_gemm_tuned")
    with pytest.raises(TypeError, match="missing"):
        r.is_asm_fp4_gemm_tuned(1)
