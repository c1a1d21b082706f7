"""The example of docs/add-a-provider.md, found through its entry point as an installed distribution would be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aiter_ops

EXAMPLE = Path(__file__).parents[2] / "examples" / "provider"
SOURCE = Path(aiter_ops.__file__).parents[1]


def install(site: Path, name: str, points: dict[str, str]) -> None:
    """What an installer leaves behind: the metadata of a distribution with entry points."""
    info = site / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points.items())
    (info / "entry_points.txt").write_text(f"[aiter_ops.providers]\n{lines}")


def run(site: Path, *line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(SOURCE), str(EXAMPLE), str(site)])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    text = (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^name = "(.+)"', text, re.M).group(1)
    section = text.partition('[project.entry-points."aiter_ops.providers"]')[2]
    install(tmp_path, name, dict(re.findall(r'^(\w+) = "(.+)"', section, re.M)))
    return tmp_path


def test_it_serves_and_verifies(site):
    done = run(site, "-m", "aiter_ops", "verify", "silu_and_mul", "--provider", "acme", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["verdict"] == "ok"
    assert row["refusals"] == ["limit 5x256: limit is not implemented"]


def test_it_can_be_left_out(site):
    done = run(site, "-m", "aiter_ops", "explain", "silu_and_mul", "--json", AITER_OPS_PLUGINS="")
    assert done.returncode == 0, done.stderr
    assert "acme" not in done.stdout


def test_a_built_in_name_is_refused_with_both_distributions(tmp_path):
    install(tmp_path, "acme-kernels", {"triton": "acme_kernels:PROVIDER"})
    done = run(tmp_path, "-m", "aiter_ops", "doctor")
    assert done.returncode == 2
    assert "acme-kernels" in done.stderr
    assert "aiter-ops has" in done.stderr
    assert done.stderr.count("\n") == 1


CRASHY = """
import os
from aiter_ops import Provider
PROVIDER = Provider("crashy")

@PROVIDER.implements("silu_and_mul")
def silu_and_mul(x, limit=None):
    os.abort()

@PROVIDER.implements("gelu_and_mul")
def gelu_and_mul(x):
    print("noise on stdout")
    gate, up = x.float().chunk(2, dim=-1)
    import torch.nn.functional as F
    return (F.gelu(gate) * up).to(x.dtype).contiguous()
"""

ISOLATED = """
import json
from aiter_ops import get_op, reload_settings
from aiter_ops.check.verify import verify
reload_settings()
ops = [get_op(name) for name in ("silu_and_mul", "gelu_and_mul", "group_quant")]
for row in verify(ops, ["crashy"], "cpu", isolated=("crashy",)):
    print(json.dumps(row.as_dict()))
"""


def test_a_crash_is_a_row_and_the_rest_goes_on(tmp_path):
    """Provider aiter is run this way: in a child process per family."""
    (tmp_path / "crashy.py").write_text(CRASHY)
    install(tmp_path, "crashy-kernels", {"crashy": "crashy:PROVIDER"})
    done = run(tmp_path, "-c", ISOLATED)
    assert done.returncode == 0, done.stderr
    rows = {row["op"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows["silu_and_mul"]["verdict"] == "crashed"
    assert "SIGABRT" in rows["silu_and_mul"]["detail"]
    assert rows["gelu_and_mul"]["verdict"] == "ok"
    assert rows["group_quant"]["verdict"] == "not here"
