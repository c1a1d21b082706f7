"""An importable stand-in for AITER: the package `aiter` of any release in the contract table, which computes on the CPU.

`written` makes the tree: the release's modules, with its functions under their exact parameters and defaults, AITER's two
decorators that leave a signature to be seen only as a schema of ``torch.ops.aiter``, its enums, and the metadata of the
distribution ``amd-aiter``. Every function hands its arguments to `kernels` (in the tree: ``aiter_standin``), which is
written from AITER's own sources, in plain PyTorch, and imports nothing of the op layer. Of the op layer this file uses
the contract table alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aiter_ops.providers.aiter.contract.table import Row, table

KERNELS = Path(__file__).with_name("kernels")
NEWEST = table().newest

STUBS = ("get_hip_quant", "gemm_a8w8", "biased_grouped_topk", "pa_fwd_asm")
"""Names that AITER leaves in its package too; nothing here calls them."""

TRITON = "aiter.ops.triton"
HEAD = '''"""Of a stand-in for AITER {release}."""
from aiter.names import *
from aiter_standin.package import answer, compile_ops, torch_compile_guard

'''


def at(release: str) -> dict[str, Row]:
    """The entries of a release, by name; one newer than the table has those of the newest."""
    return {name: row for name in table().entries if (row := table().at(name, release))}


def _definition(name: str, row: Row, text: str) -> str:
    if row.visible == "value":
        return f"{name} = enums.{name}\n"
    decorator = f"@compile_ops({row.built!r})\n" if row.built else "@torch_compile_guard()\n"
    given = ", ".join(f"{p.name}={p.name}" for p in row._replace(text=text).parameters)
    head = decorator if row.visible == "schema" else ""
    return f"{head}def {name}({text}):\n    return answer({name!r}, {given})\n"


def written(folder: Path, release: str = NEWEST, arch: str = "gfx942", changes: dict[str, str] | None = None) -> Path:
    """The tree in `folder`, which is put on sys.path to import it. Returns the package's folder.

    arch: the machine it takes itself to be on. changes: entry -> other text of its parameters.
    """
    root = folder / "aiter"
    modules: dict[str, list[str]] = {}
    for name, row in at(release).items():
        definition = _definition(name, row, (changes or {}).get(name, row.text))
        modules.setdefault(row.module, []).append(definition)
    for module, definitions in modules.items():
        path = root.joinpath(*module.split(".")[1:]).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD.format(release=release) + "\n".join(definitions))
    for path in (root, *(p for p in root.rglob("*") if p.is_dir())):
        (path / "__init__.py").touch()
    (root / "jit").mkdir(exist_ok=True)
    (root / "jit" / "core.py").touch()  # by which AMD's package is told from others of the name
    (root / "names.py").write_text(
        f"from aiter_standin.package import of\nglobals().update(of({release!r}, {arch!r}))\n"
    )
    (root / "stubs.py").write_text(f"{' = '.join(STUBS)} = object\n")
    imports = [
        f"from .{m.removeprefix('aiter.')} import *" for m in modules if not m.startswith((TRITON, "aiter.fused_moe"))
    ]
    lines = ["from .names import dtypes", "from .stubs import *", *sorted(imports)]
    (root / "__init__.py").write_text("\n".join(lines) + "\n")
    link = folder / "aiter_standin"
    if not link.exists():
        link.symlink_to(KERNELS, target_is_directory=True)
    return root


def installed(folder: Path, release: str, arch: str = "gfx942", changes: dict[str, str] | None = None) -> Path:
    """The tree with the metadata that pip would leave. Returns the package's folder."""
    info = folder / f"amd_aiter-{release}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: amd-aiter\nVersion: {release}\n")
    return written(folder, release, arch, changes)


def unload() -> None:
    """Forget the package that was imported, and what it has registered with torch."""
    for name in [n for n in sys.modules if n.split(".")[0] == "aiter"]:
        del sys.modules[name]
    if "aiter_standin.package" in sys.modules:
        sys.modules["aiter_standin.package"].forget()
