"""Facts of machines, without touching one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import aiter_ops
from aiter_ops.core import platforms

MI300X = """cpu_cores_count 0
simd_count 1216
simd_per_cu 4
lds_size_in_kb 64
wave_front_size 64
gfx_target_version 90402
vendor_id 4098
name
"""


def topology(root: Path, *nodes: str) -> str:
    for index, text in enumerate(nodes):
        (root / str(index)).mkdir()
        (root / str(index) / "properties").write_text(text)
    return str(root)


def test_an_amd_gpu_from_the_kernel_drivers_topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    cpu = "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n"
    rdna4 = MI300X.replace("90402", "120001").replace("wave_front_size 64", "wave_front_size 32")
    root = topology(tmp_path, cpu, MI300X, rdna4)
    found = platforms._from_kfd(root)
    assert found is not None
    assert (found.vendor, found.arch, found.wave_size, found.compute_units, found.lds) == (
        "amd",
        "gfx942",
        64,
        304,
        65536,
    )
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    second = platforms._from_kfd(root)
    assert second is not None
    assert (second.arch, second.wave_size) == ("gfx1201", 32)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    assert platforms._from_kfd(root) is None
    assert platforms._from_kfd(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    ("version", "arch"), [(90010, "gfx90a"), (90500, "gfx950"), (110000, "gfx1100"), (120500, "gfx1250")]
)
def test_arch_names(tmp_path: Path, version: int, arch: str) -> None:
    found = platforms._from_kfd(topology(tmp_path, MI300X.replace("90402", str(version))))
    assert found is not None
    assert found.arch == arch


def test_fp8_flavour_follows_the_arch() -> None:
    assert aiter_ops.platform_for("gfx942").fp8_dtype == torch.float8_e4m3fnuz
    for arch in ("gfx950", "gfx1201", "gfx1250", "sm_90", "cpu"):
        assert aiter_ops.platform_for(arch).fp8_dtype == torch.float8_e4m3fn
    assert aiter_ops.platform_for("gfx90a").fp8_types == ()
    assert aiter_ops.platform_for("gfx1100").fp8_types == ()
    assert aiter_ops.platform_for("gfx942").fp8_types == (torch.float8_e4m3fnuz,)


def test_platforms_that_are_not_here() -> None:
    there = aiter_ops.platform_for("gfx950", aiter="0.1.16")
    assert (there.vendor, there.wave_size, there.aiter, there.lds) == ("amd", 64, "0.1.16", 160 * 1024)
    assert aiter_ops.platform_for("gfx1100").wave_size == 32
    with pytest.raises(ValueError, match="arch='mi300x'; accepted"):
        aiter_ops.platform_for("mi300x")


def test_this_machine_is_plain_data() -> None:
    facts = aiter_ops.platform().as_dict()
    assert facts["torch_version"] == torch.__version__
    assert set(facts) >= {
        "vendor",
        "arch",
        "wave_size",
        "compute_units",
        "lds",
        "hip",
        "cuda",
        "triton",
        "aiter",
        "fp8_dtype",
    }


class FakeNvml:
    """The calls `_from_nvml` makes, of a GPU with so many cores; cores None: a driver that does not count them."""

    def __init__(self, capability: tuple[int, int], cores: int | None) -> None:
        self.capability, self.cores = capability, cores
        if cores is not None:
            self.nvmlDeviceGetNumGpuCores = self._cores

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        return index

    def nvmlDeviceGetCudaComputeCapability(self, device: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.capability
        return 0

    def nvmlDeviceGetName(self, device: Any, name: Any, size: int) -> int:
        name.value = b"a GPU"
        return 0

    def _cores(self, device: Any, cores: Any) -> int:
        cores._obj.value = self.cores
        return 0


@pytest.mark.parametrize(
    ("capability", "cores", "units"),
    [((9, 0), 16896, 132), ((8, 0), 6912, 108), ((8, 9), 18176, 142), ((9, 0), None, 0)],
)
def test_nvidias_compute_units_are_known_before_the_device_is_up(
    capability: tuple[int, int], cores: int | None, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedules are made for so many programs: a number that is missing until CUDA runs would cost all but a few."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(platforms.ctypes, "CDLL", lambda name: FakeNvml(capability, cores))
    found = platforms._from_nvml()
    assert found is not None
    assert (found.arch, found.compute_units) == (f"sm_{capability[0]}{capability[1]}", units)
