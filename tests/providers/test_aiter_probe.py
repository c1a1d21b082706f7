"""What is said of an installed AITER before it is imported, and what is held against the table when it is."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aiter_ops
from aiter_ops.core import platforms, runtime
from aiter_ops.core.platforms import AS_NEWEST, Platform, aiter_facts, platform_for
from aiter_ops.core.policy import Policy
from aiter_ops.providers.aiter import call, probe
from aiter_ops.providers.aiter.contract import archs, extract
from aiter_ops.providers.aiter.contract.table import Parameter, parameters, table

from .standin import NEWEST, unload, written

RMS = aiter_ops.get_op("rms_norm")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    def forget() -> None:
        for cached in (call.entry, call._import_aiter, probe.stands, extract._module):
            cached.cache_clear()
        unload()

    forget()
    yield
    forget()


def on(root: Path | str | None, release: str, arch: str = "gfx942") -> Platform:
    return platform_for(arch, aiter=release, aiter_root=None if root is None else str(root))


def aiter_of(machine: Platform, strict: bool = False) -> tuple[str | None, str | None]:
    found = runtime.find(RMS, machine, Policy(strict=strict))
    candidate = next(c for c in found if c.provider == "aiter")
    return candidate.out, candidate.note


# --- before import ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["0.1.5", "0.1.9", "0.1.16.post3", NEWEST])
def test_sources_that_are_as_their_release_has_them_serve(release: str, tmp_path: Path) -> None:
    assert aiter_of(on(written(tmp_path, release), release)) == (None, None)


def test_a_newer_release_is_taken_where_its_sources_say_the_same(tmp_path: Path) -> None:
    note = f"AITER 0.1.26 is newer than the table ({NEWEST}), matched by signature, meaning unverified"
    root = written(tmp_path)
    for machine in (on(root, "0.1.26"), on(AS_NEWEST, "0.1.26")):
        assert aiter_of(machine) == (None, note)
        assert aiter_of(machine, strict=True) == (f"strict: {note}", note)
    assert note in str(aiter_ops.explain(RMS, on=on(root, "0.1.26")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input, weight, epsilon, use_model_sensitive_rmsnorm=0, gemma_norm=False", "it also takes gemma_norm"),
        ("input, weight, epsilon", "it has no use_model_sensitive_rmsnorm"),
        ("weight, input, epsilon, use_model_sensitive_rmsnorm=0", "it takes weight where input was"),
        ("input, weight, epsilon, use_model_sensitive_rmsnorm=1", "use_model_sensitive_rmsnorm is 1 by default, not 0"),
        ("input, weight, epsilon, *, use_model_sensitive_rmsnorm=0", "use_model_sensitive_rmsnorm is keyword-only"),
    ],
)
def test_a_newer_release_with_another_signature_is_refused(text: str, words: str, tmp_path: Path) -> None:
    root = written(tmp_path, changes={"rmsnorm2d_fwd": text})
    reason = f"AITER 0.1.26 is newer than the table ({NEWEST}); rmsnorm2d_fwd: {words}"
    assert aiter_of(on(root, "0.1.26")) == (reason, None)
    other = aiter_ops.get_op("layer_norm")
    assert next(c for c in runtime.find(other, on(root, "0.1.26"), Policy()) if c.provider == "aiter").out is None


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    assert (
        aiter_of(on(None, "0.1.26"))[0]
        == f"AITER 0.1.26 is newer than the table ({NEWEST}), and its signatures are not known"
    )
    unlisted = "0.1.17.dev12+g1a2b3c4"
    assert (
        aiter_of(on(None, unlisted))[0]
        == f"AITER {unlisted} is no release of the table, and its signatures are not known"
    )
    note = aiter_of(on(written(tmp_path, "0.1.17"), unlisted))
    assert note == (None, f"AITER {unlisted} is no release of the table, matched by signature, meaning unverified")


def test_a_partial_install_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    root = written(tmp_path, "0.1.16")
    (root / "ops" / "rmsnorm.py").unlink()
    assert aiter_of(on(root, "0.1.16"))[0] == (
        "AITER 0.1.16 is not what that release is; rmsnorm2d_fwd: aiter.ops.rmsnorm is missing or cannot be parsed"
    )
    extract._module.cache_clear()
    probe.stands.cache_clear()
    (root / "ops" / "rmsnorm.py").write_text("def rmsnorm(:")
    assert "cannot be parsed" in (aiter_of(on(root, "0.1.16"))[0] or "")


def test_triton_only_leaves_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITER_TRITON_ONLY", "1")
    machine = on(written(tmp_path), NEWEST)
    assert aiter_of(machine)[0] == "AITER_TRITON_ONLY=1 leaves AITER's Triton kernels only"
    gemm = aiter_ops.get_op("gemm_a16w16")
    assert next(c for c in runtime.find(gemm, machine, Policy()) if c.provider == "aiter").out is None


def test_the_extractor_sees_what_decorators_hide() -> None:
    found = extract.definitions(
        "@compile_ops('module_x', fc_name='y')\ndef hidden(a: Tensor, b: int = 2, *, c=None) -> None: ...\n"
        "@torch_compile_guard(mutates_args=[])\ndef guarded(a): ...\n"
        "@functools.lru_cache\ndef plain(*args, **kwargs): ...\n"
        "try:\n    import x\nexcept ImportError:\n    def fallback(z): ...\n"
    )
    assert found["hidden"] == (parameters("a, b=2, *, c=None"), "schema", "module_x")
    assert found["guarded"][1:] == ("schema", "")
    assert found["plain"] == ((Parameter("*args"), Parameter("**kwargs")), "python", "")
    assert "fallback" in found


# --- which package is it ----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _installed(folder: Path, release: str) -> None:
    info = folder / f"amd_aiter-{release}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: amd-aiter\nVersion: {release}\n")


def test_no_aiter_at_all() -> None:
    assert aiter_facts() == (None, None, None)


def test_a_package_of_that_name_that_is_not_amds(path: Path) -> None:
    (path / "aiter.py").write_text("raise SystemExit\n")
    facts = aiter_facts()
    assert facts.release is facts.root is None
    assert "is not AMD's AITER (amd-aiter)" in facts.fault
    machine = platform_for("gfx942")._replace(aiter=facts.release, aiter_root=facts.root, aiter_fault=facts.fault)
    assert aiter_of(machine)[0] == facts.fault


def test_amds_with_its_metadata_and_without_its_package(path: Path) -> None:
    _installed(path, "0.1.16")
    assert aiter_facts().fault == "amd-aiter 0.1.16 is installed, but its package aiter is not to be found"
    root = written(path, "0.1.16")
    assert aiter_facts() == ("0.1.16", str(root), None)
    assert "aiter" not in sys.modules


def test_a_checkout_says_its_release_in_a_file(path: Path) -> None:
    root = written(path)
    assert aiter_facts().release is None
    assert "says no release" in (aiter_facts().fault or "")
    (root / "_version.py").write_text("__version__ = version = '0.1.17.dev3+g1a2b3c4'\n")
    assert aiter_facts().release == "0.1.17.dev3+g1a2b3c4"


# --- at import --------------------------------------------------------------------------------------------------------


def _entry(name: str, monkeypatch: pytest.MonkeyPatch, release: str = NEWEST) -> object:
    monkeypatch.setattr(platforms, "platform", lambda: platform_for("gfx942", aiter=release))
    return call.entry(name)


def test_an_entry_is_found_where_its_release_has_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, "0.1.9")
    assert _entry("unified_attention", monkeypatch, "0.1.9").__module__ == "aiter.ops.triton.unified_attention"


def test_a_live_signature_is_held_against_the_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(path, changes={"topk_softmax": "a, b, c, d, e"})
    with pytest.raises(
        call.BrokenAiter, match=r"is not what that release is; topk_softmax: it also takes a, b, c, d, e"
    ):
        _entry("topk_softmax", monkeypatch)


def test_an_import_that_fails_names_the_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = written(path)
    (root / "__init__.py").write_text("import a_dependency_that_is_not_there\n")
    with pytest.raises(call.BrokenAiter, match=r"cannot be imported: ModuleNotFoundError: .*a_dependency_that") as info:
        _entry("rmsnorm2d_fwd", monkeypatch)
    assert isinstance(info.value.__cause__, ModuleNotFoundError)


def test_a_truncated_import_is_recognised_and_its_first_error_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = written(path)
    (root / "flydsl_user.py").write_text("raise RuntimeError('flydsl 0.3.1 is needed; 0.2.0 is installed')\n")
    (root / "__init__.py").write_text(
        "try:\n    from .ops.norm import *\n    from .flydsl_user import *\n    from .stubs import *\nexcept Exception:\n    pass\n"
    )
    words = r"its import stopped early: rmsnorm2d_fwd_with_add, .* missing; aiter\.flydsl_user fails: RuntimeError: flydsl 0\.3\.1"
    with pytest.raises(call.BrokenAiter, match=words):
        _entry("rmsnorm2d_fwd", monkeypatch)


def test_a_hidden_signature_is_read_from_the_schema() -> None:
    library = torch.library.Library("aiter", "FRAGMENT")
    library.define("layernorm2d_fwd(Tensor input, Tensor weight, Tensor bias, float epsilon=1e-05) -> Tensor")
    library.define("wrapper_old_entry(Tensor dummy, SymInt n=3) -> ()")

    def hidden(*args, **kwargs): ...

    try:
        assert [p.name for p in probe.shown(hidden, "layernorm2d_fwd")] == ["input", "weight", "bias", "epsilon"]
        assert probe.shown(hidden, "old_entry") == (Parameter("n", "3"),)
        assert probe.shown(hidden, "never_registered") is None
        row = table().at("layernorm2d_fwd", NEWEST)
        assert row.visible == "schema"
        assert probe.unlike(hidden, "layernorm2d_fwd", row) == "it has no x_bias"
        same = row._replace(text="input, weight, bias, epsilon=1e-05")
        assert probe.unlike(hidden, "layernorm2d_fwd", same) is None
        other = row._replace(text="input, weight, bias, epsilon=1e-06")
        assert probe.unlike(hidden, "layernorm2d_fwd", other) == "epsilon is 1e-05 by default, not 1e-06"
    finally:
        library._destroy()


def test_hip_symbols_are_shown_only_where_torch_has_hip(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(call.ctypes, "CDLL", lambda path, mode: opened.append(path))
    call._show_hip_symbols()
    assert opened == []
    monkeypatch.setattr(torch.version, "hip", "7.2")
    with caplog.at_level(logging.WARNING, "aiter_ops"):
        call._show_hip_symbols()  # no such library is loaded here
    assert opened == []
    assert not caplog.records


def test_what_aiter_has_for_each_family_of_architectures() -> None:
    assert archs.FULL == ("gfx942", "gfx950")
    assert {a: archs.family_of(a).name for a in ("gfx90a", "gfx1100", "gfx1151", "gfx1201", "gfx1250")} == {
        "gfx90a": "CDNA2",
        "gfx1100": "RDNA3",
        "gfx1151": "RDNA3",
        "gfx1201": "RDNA4",
        "gfx1250": "gfx1250",
    }
    composable = {f.name for f in archs.FAMILIES if "ck" in f.kinds}
    assert composable == {"CDNA3", "CDNA4"}
    assert archs.why_not("gfx942") is None
    assert "no Composable Kernel" in archs.why_not("gfx1201")
    assert archs.why_not("gfx1030") == "AITER's table of architectures has no gfx1030"


def test_nothing_of_the_contract_is_read_at_import() -> None:
    """In a fresh interpreter: the package, its ops and an explanation for a CPU."""
    script = (
        "import sys, aiter_ops; aiter_ops.explain('rms_norm')\n"
        "bad = [m for m in sys.modules if 'aiter.contract' in m or m == 'aiter']\n"
        "assert not any('contract.table' in m and sys.modules[m].table.cache_info().currsize for m in bad), bad\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
