"""A package ``aiter`` on disk with the modules and signatures of one release, which computes nothing."""

from __future__ import annotations

from pathlib import Path

from aiter_ops.providers.aiter import probe
from aiter_ops.providers.aiter.contract import extract
from aiter_ops.providers.aiter.contract.table import table

NEWEST = table().newest


def written(folder: Path, release: str = NEWEST, changes: dict[str, str] | None = None) -> Path:
    """A package ``aiter`` with the modules and signatures of a release; nothing in them computes.

    changes: entry -> other text of its parameters. Returns the package's folder.
    """
    root = folder / "aiter"
    modules: dict[str, list[str]] = {}
    for name in table().entries:
        if row := table().at(name, release):
            text = (changes or {}).get(name, row.text)
            line = f"{name} = object" if row.visible == "value" else f"def {name}({text}): ..."
            modules.setdefault(row.module, []).append(line)
    for module, lines in modules.items():
        path = extract.module_path(str(root), module)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from __future__ import annotations\nfrom aiter.names import *\n" + "\n".join(lines) + "\n")
    for path in (root, *(p for p in root.rglob("*") if p.is_dir())):
        (path / "__init__.py").touch()
    (root / "names.py").write_text(
        "class Name:\n    def __getattr__(self, name): return self\n"
        "dtypes = torch = fp8_dtype = ActivationType = QuantType = GateMode = Optional = Name()\n"
    )
    names = ", ".join(probe.CANARY)
    (root / "__init__.py").write_text(f"from .canary import {names}\n")
    (root / "canary.py").write_text(f"{' = '.join(probe.CANARY)} = object\n")
    (root / "jit").mkdir(exist_ok=True)
    (root / "jit" / "core.py").touch()
    return root
