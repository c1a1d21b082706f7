"""Facts of a machine, gathered without touching a device or creating a HIP or CUDA context."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch

FNUZ_ARCHS = ("gfx940", "gfx941", "gfx942")
"""Architectures whose FP8 is e4m3fnuz, with maximum 240 (facts: AITER's and ROCm's tables); all others use OCP e4m3fn."""

OCP_ARCHS = ("gfx950", "gfx1200", "gfx1201", "gfx1250", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
"""Architectures with instructions for e4m3fn; gfx90a, gfx11xx and older NVIDIA parts have no FP8 type at all."""

WAVE64_ARCHS = "gfx9"

AS_NEWEST = "as the newest known release"


class Platform(NamedTuple):
    """What decisions are made from. All fields are plain data, so a platform that is not here can be written down.

    vendor: ``amd``, ``nvidia`` or ``cpu``; arch: ``gfx942``, ``sm_90`` or ``cpu``; lds: bytes of shared memory a
    workgroup can use; versions are strings or None where the thing is not installed. aiter_root: the folder of AITER's
    package, whose sources tell what it offers; AS_NEWEST: assumed to offer what the newest known release does; None:
    nothing is known of it but its release. aiter_fault: why an AITER that seems to be here is none, or None.
    """

    vendor: str = "cpu"
    arch: str = "cpu"
    name: str = "CPU"
    wave_size: int = 0
    compute_units: int = 0
    lds: int = 0
    torch_version: str = torch.__version__
    hip: str | None = None
    cuda: str | None = None
    triton: str | None = None
    triton_interpret: bool = False
    aiter: str | None = None
    aiter_root: str | None = None
    aiter_fault: str | None = None

    @property
    def fp8_dtype(self) -> torch.dtype:
        """The FP8 format of this machine's matrix units."""
        return torch.float8_e4m3fnuz if self.arch in FNUZ_ARCHS else torch.float8_e4m3fn

    @property
    def fp8_types(self) -> tuple[torch.dtype, ...]:
        """The FP8 formats a kernel can convert to and from on this machine; unknown architectures have none."""
        if self.arch in FNUZ_ARCHS:
            return (torch.float8_e4m3fnuz,)
        return (torch.float8_e4m3fn,) if self.arch in OCP_ARCHS else ()

    @property
    def has_gpu(self) -> bool:
        return self.vendor != "cpu"

    def as_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "fp8_dtype": str(self.fp8_dtype).removeprefix("torch.")}


def platform_for(arch: str, **facts: Any) -> Platform:
    """A platform that is not here, from its architecture: ``platform_for("gfx950", aiter="0.1.16")``."""
    if arch == "cpu":
        return Platform(**facts)
    if not re.fullmatch(r"gfx[0-9a-f]{3,4}|sm_[0-9]{2,3}", arch):
        raise ValueError(f"arch={arch!r}; accepted: cpu, gfx… (gfx942) or sm_… (sm_90)")
    amd = arch.startswith("gfx")
    base = Platform(
        vendor="amd" if amd else "nvidia",
        arch=arch,
        name=arch,
        wave_size=64 if amd and arch.startswith(WAVE64_ARCHS) else 32,
        lds=160 * 1024 if arch == "gfx950" else 64 * 1024 if amd else 227 * 1024,
        hip="assumed" if amd else None,
        cuda=None if amd else "assumed",
        triton=version_of_triton() or "assumed",
    )
    return base._replace(**facts)


def distribution_version(*names: str) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version_of_triton() -> str | None:
    """The version of the importable ``triton`` package, whichever distribution owns it; not imported for it."""
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.origin:
        return None
    if module := sys.modules.get("triton"):
        return str(getattr(module, "__version__", "unknown"))
    with open(spec.origin, encoding="utf-8") as file:
        found = re.search(r"""__version__\s*=\s*['"]([^'"]+)""", file.read())
    return found.group(1) if found else "unknown"


class AiterFacts(NamedTuple):
    """The fields of a Platform about AITER: its release, its folder, and what is wrong."""

    release: str | None = None
    root: str | None = None
    fault: str | None = None


def aiter_facts() -> AiterFacts:
    """What this machine has of AITER. Nothing of it is imported.

    AMD's distribution is ``amd-aiter``; the PyPI name ``aiter`` belongs to another project, whose package is told from
    AMD's by what lies in it.
    """
    release = distribution_version("amd-aiter")
    try:
        spec = importlib.util.find_spec("aiter")
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec else []
    root = next((p for p in places if os.path.isfile(os.path.join(p, "jit", "core.py"))), None)
    if root is not None:
        release = release or _written_release(root)
        unknown = None if release else f"the AITER in {root} says no release, neither in metadata nor in _version.py"
        return AiterFacts(release, root, unknown)
    fault = None
    if spec is not None:
        fault = f"the Python package aiter here ({spec.origin or ', '.join(places)}) is not AMD's AITER (amd-aiter)"
    elif release is not None:
        fault = f"amd-aiter {release} is installed, but its package aiter is not to be found"
    return AiterFacts(fault=fault)


def _written_release(root: str) -> str | None:
    """The release of a checkout that no distribution owns, where its build wrote one down."""
    try:
        with open(os.path.join(root, "_version.py"), encoding="utf-8") as file:
            found = re.search(r"""^(?:__version__|version)\b[^'"]*['"]([^'"]+)""", file.read(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1) if found else None


def _visible_index(*variables: str) -> str | None:
    """The first device that a visibility variable leaves, as written there; None: no restriction; "" : none left."""
    for variable in variables:
        if (value := os.environ.get(variable)) is not None:
            first = value.split(",")[0].strip()
            return "" if first == "-1" else first
    return None


def _from_kfd(root: str = "/sys/class/kfd/kfd/topology/nodes") -> Platform | None:
    """The first visible AMD GPU, from the kernel driver's topology files."""
    gpus: list[dict[str, int]] = []
    for path in sorted(glob.glob(f"{root}/*/properties"), key=lambda p: int(p.split("/")[-2])):
        try:
            with open(path, encoding="ascii") as file:
                pairs = (line.split() for line in file)
                facts = {k: int(v) for k, v in (p for p in pairs if len(p) == 2) if v.isdigit()}
        except OSError:
            continue
        if facts.get("gfx_target_version"):
            gpus.append(facts)
    visible = _visible_index("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    if not gpus or visible == "":
        return None
    gpu = gpus[min(int(visible), len(gpus) - 1)] if visible and visible.isdigit() else gpus[0]
    target = gpu["gfx_target_version"]
    arch = f"gfx{target // 10000}{target // 100 % 100:x}{target % 100:x}"
    per_cu = gpu.get("simd_per_cu", 0)
    return Platform(
        vendor="amd",
        arch=arch,
        name=f"AMD {arch}",
        wave_size=gpu.get("wave_front_size", 64),
        compute_units=gpu["simd_count"] // per_cu if per_cu else 0,
        lds=gpu.get("lds_size_in_kb", 64) * 1024,
    )


def _from_nvml() -> Platform | None:
    """The first visible NVIDIA GPU, from the driver's management library."""
    visible = _visible_index("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    try:
        device = ctypes.c_void_p()
        if visible and not visible.isdigit():
            status = nvml.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(device))
        else:
            status = nvml.nvmlDeviceGetHandleByIndex_v2(int(visible or 0), ctypes.byref(device))
        major, minor = ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(96)
        if status or nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)):
            return None
        nvml.nvmlDeviceGetName(device, name, len(name))
        capability = major.value * 10 + minor.value
        lds = {70: 96, 75: 64, 80: 163, 86: 99, 87: 163, 89: 99}.get(capability, 227)
        cores, units = ctypes.c_uint(), 0
        # drivers before 470 do not count cores; a multiprocessor has 64 of them up to sm_80, 128 after
        with contextlib.suppress(AttributeError):
            if not nvml.nvmlDeviceGetNumGpuCores(device, ctypes.byref(cores)):
                units = cores.value // (64 if capability <= 80 else 128)
        return Platform("nvidia", f"sm_{capability}", name.value.decode(), 32, units, lds * 1024)
    finally:
        nvml.nvmlShutdown()


def _from_torch() -> Platform | None:
    """What torch knows, only where torch has the device up already."""
    if not torch.cuda.is_initialized():
        return None
    facts = torch.cuda.get_device_properties(0)
    amd = torch.version.hip is not None
    return Platform(
        vendor="amd" if amd else "nvidia",
        arch=facts.gcnArchName.split(":")[0] if amd else f"sm_{facts.major}{facts.minor}",
        name=facts.name,
        wave_size=getattr(facts, "warp_size", 32),
        compute_units=facts.multi_processor_count,
        lds=getattr(facts, "shared_memory_per_block_optin", 64 * 1024),
    )


def driver_gpu() -> Platform | None:
    """The first visible GPU that a driver on this machine shows, whatever torch is a build for."""
    return _from_kfd() or _from_nvml()


@cache
def platform() -> Platform:
    """This machine, read once. A GPU counts only where torch is a build for it."""
    found: Platform | None = None
    if torch.version.hip:
        found = _from_torch() or _from_kfd()
    elif torch.version.cuda:
        found = _from_torch() or _from_nvml()
    aiter = aiter_facts()
    return (found or Platform())._replace(
        hip=torch.version.hip,
        cuda=torch.version.cuda,
        triton=version_of_triton(),
        triton_interpret=os.environ.get("TRITON_INTERPRET") == "1",
        aiter=aiter.release,
        aiter_root=aiter.root,
        aiter_fault=aiter.fault,
    )


_assumed: list[Platform] = []


@contextlib.contextmanager
def fp8_as_on(target: Platform) -> Iterator[None]:
    """`fp8_dtype` is that of another machine, as long as this lasts: for references of what is emulated there."""
    _assumed.append(target)
    try:
        yield
    finally:
        _assumed.pop()


def fp8_dtype() -> torch.dtype:
    """This machine's FP8 format: what ``dtype=None`` means in the ops."""
    return (_assumed[-1] if _assumed else platform()).fp8_dtype


# torch.compile evaluates it while tracing: the machine does not change under compiled code.
fp8_dtype._dynamo_marked_constant = True  # type: ignore[attr-defined]
