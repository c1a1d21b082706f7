"""tools/aiter_contract.py: one command puts a release into the table, from whatever form AITER comes in."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from aiter_ops.providers.aiter.contract import table as reader

from .standin import written

PATH = Path(__file__).parents[2] / "tools" / "aiter_contract.py"
DATA = json.loads(reader.DATA.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("aiter_contract", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return Path(shutil.copy(reader.DATA, tmp_path / "releases.json"))


def _package(folder: Path, changes: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    written(folder, changes=changes)
    return folder


def test_a_release_that_changes_nothing_adds_its_number(tool: Any, out: Path, tmp_path: Path, capsys: Any) -> None:
    folder = _package(tmp_path / "checkout")
    tool.main([str(folder), "--release", "0.1.21", "--out", str(out)])
    made = json.loads(out.read_text(encoding="utf-8"))
    assert made["releases"] == [*DATA["releases"], "0.1.21"]
    assert made["entries"] == DATA["entries"]
    assert capsys.readouterr().out == ""


def test_a_change_is_told_with_the_ops_it_concerns(tool: Any, out: Path, tmp_path: Path, capsys: Any) -> None:
    folder = _package(tmp_path / "checkout", {"grouped_topk": "gating_output, ids, weights"})
    (folder / "aiter" / "ops" / "sample.py").unlink()
    tool.main([str(folder), "--release", "0.1.21", "--out", str(out)])
    said = capsys.readouterr().out
    assert "grouped_topk: (gating_output, ids, weights) in aiter.ops.topk; called by grouped_topk\n" in said
    assert "greedy_sample: gone; called by greedy\n" in said
    entries = json.loads(out.read_text(encoding="utf-8"))["entries"]
    assert [row[:2] for row in entries["grouped_topk"]][-2:] == [
        [DATA["entries"]["grouped_topk"][-1][0], "0.1.21"],
        ["0.1.21", None],
    ]
    assert entries["greedy_sample"][-1][1] == "0.1.21"


def test_a_wheel_and_an_installed_package_say_their_release(tool: Any, out: Path, tmp_path: Path) -> None:
    folder = _package(tmp_path / "site-packages")
    wheel = tmp_path / "amd_aiter-0.1.21.post2+rocm7.2-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in folder.rglob("*.py"):
            archive.write(file, file.relative_to(folder))
    tool.main([str(wheel), "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8"))["releases"][-1] == "0.1.21.post2"
    (folder / "amd_aiter-0.1.22.dist-info").mkdir()
    tool.main([str(folder), "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8"))["releases"][-1] == "0.1.22"
    with pytest.raises(SystemExit, match="says a release"):
        tool.main([str(tmp_path), "--out", str(out)])


def test_a_clone_gives_every_release_that_is_tagged(tool: Any, tmp_path: Path) -> None:
    folder = _package(tmp_path / "clone")

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    for tag in ("v0.2.0", "v0.2.1-rc1", "v0.2.1.dev0", "archive/v0.2.2"):
        git("tag", tag)
    (folder / "aiter" / "mla.py").unlink()
    git("commit", "-q", "-a", "-m", "two")
    git("tag", "v0.2.0.post1")
    made = tmp_path / "made.json"
    tool.main([str(folder), "--out", str(made)])
    data = json.loads(made.read_text(encoding="utf-8"))
    assert data["releases"] == ["0.2.0", "0.2.0.post1"]
    assert [row[:2] for row in data["entries"]["mla_decode_fwd"]] == [["0.2.0", "0.2.0.post1"]]
    assert [row[:2] for row in data["entries"]["rmsnorm"]] == [["0.2.0", None]]
