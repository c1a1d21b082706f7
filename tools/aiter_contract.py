"""Rebuild or extend src/aiter_ops/providers/aiter/contract/releases.json from AITER's sources.

    python tools/aiter_contract.py path/to/aiter.git              every release that is tagged there
    python tools/aiter_contract.py path/to/checkout --release 0.1.21
    python tools/aiter_contract.py amd_aiter-0.1.21-*.whl         a wheel; its name says the release
    python tools/aiter_contract.py path/to/site-packages          what is installed there

A clone of https://github.com/ROCm/aiter with tags gives all of them, bare or not. The other forms put one release into
the table, or replace it there. Sources are parsed; nothing of AITER is imported or run, and of AITER only names,
parameters and defaults are kept. What changed against the release before is printed, with the ops that call it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from aiter_ops.core.evidence import version_key
from aiter_ops.core.op import list_ops
from aiter_ops.providers.aiter.contract.extract import Definition, definitions
from aiter_ops.providers.aiter.contract.table import DATA, Row, Table, table, text_of

RELEASE = re.compile(r"v?(\d+\.\d+\.\d+(?:\.post\d+)?)")
Read = Callable[[str], "str | None"]
"""The text of a file by its path in the sources, ``aiter/ops/norm.py``; None where there is none."""

TRITON = "aiter.ops.triton"


def _moved(name: str, folder: str, module: str = "") -> tuple[str, str]:
    """A Triton entry's places, newest first: a folder since 0.1.10, none before."""
    return f"{TRITON}.{folder}.{module or name}", f"{TRITON}.{module or name}"


PLACES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("rmsnorm", "rmsnorm2d_fwd", "rmsnorm2d_fwd_with_add", "rmsnorm2d_fwd_with_dynamicquant"),
            "rmsnorm2d_fwd_with_add_dynamicquant",
        ),
        ("aiter.ops.rmsnorm",),
    ),
    "layernorm2d_fwd": ("aiter.ops.norm",),
    **dict.fromkeys(("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul"), ("aiter.ops.activation",)),
    **dict.fromkeys(
        (
            *("per_group_quant_hip", "dynamic_per_token_scaled_quant", "dynamic_per_tensor_quant"),
            *("static_per_tensor_quant", "per_1x32_f4_quant_hip", "per_1x32_mx_quant_hip"),
        ),
        ("aiter.ops.quant",),
    ),
    **dict.fromkeys(
        ("fused_qk_rmsnorm", "fused_qk_rmsnorm_group_quant", "fused_qk_rmsnorm_per_token_quant"),
        ("aiter.ops.fused_qk_rmsnorm_group_quant",),
    ),
    "act_mul_and_fp8_group_quant": (f"{TRITON}.activation",),
    "fused_add_rmsnorm_pad": _moved("fused_add_rmsnorm_pad", "normalization"),
    **dict.fromkeys(
        ("fused_rms_fp8_group_quant", "fused_rms_fp8_per_tensor_static_quant"),
        _moved("fused_fp8_quant", "quant"),
    ),
    "fused_rms_gated_fp8_group_quant": (f"{TRITON}.quant.fused_fp8_quant",),
    "dynamic_mxfp4_quant": (f"{TRITON}.quant.quant", f"{TRITON}.quant"),
    **dict.fromkeys(
        (
            *("gemm_a8w8_CK", "gemm_a8w8_bpreshuffle", "gemm_a8w8_blockscale"),
            "gemm_a8w8_blockscale_bpreshuffle",
        ),
        ("aiter.ops.gemm_op_a8w8",),
    ),
    "gemm_a4w4": ("aiter.ops.gemm_op_a4w4",),
    **{n: _moved(n, "gemm.basic") for n in ("gemm_a16w16", "gemm_a8wfp4", "gemm_a16wfp4", "gemm_afp4wfp4")},
    **{
        n: _moved(n, "gemm.batched")
        for n in (
            "batched_gemm_a8w8_a_per_token_group_prequant_w_per_batched_tensor_quant",
            "batched_gemm_a16wfp4",
            "batched_gemm_bf16",
        )
    },
    **dict.fromkeys(("topk_softmax", "topk_sigmoid"), ("aiter.ops.moe_op",)),
    **dict.fromkeys(("topk_gating", "grouped_topk", "moe_fused_gate", "biased_grouped_topk_hip"), ("aiter.ops.topk",)),
    "mla_decode_fwd": ("aiter.mla",),
    "gather_kv_b_proj": (f"{TRITON}.gather_kv_b_proj",),
    "fused_moe": ("aiter.fused_moe",),
    "asm_moe_tkw1": ("aiter.fused_moe_bf16_asm",),
    **dict.fromkeys(("ActivationType", "QuantType"), ("aiter.ops.enum", "aiter")),
    **dict.fromkeys(("shuffle_weight", "shuffle_weight_a16w4", "shuffle_scale_a16w4"), ("aiter.ops.shuffle",)),
    "e8m0_shuffle": ("aiter.utility.fp4_utils",),
    **dict.fromkeys(("flash_attn_varlen_func", "flash_attn_varlen_fp8_pertensor_func"), ("aiter.ops.mha",)),
    "unified_attention": _moved("unified_attention", "attention"),
    **dict.fromkeys(
        ("rope_cached_thd_positions_2c_fwd_inplace", "rope_cached_thd_positions_offsets_2c_fwd_inplace"),
        (f"{TRITON}.rope.rope", f"{TRITON}.rope"),
    ),
    **dict.fromkeys(("reshape_and_cache", "reshape_and_cache_flash", "concat_and_cache_mla"), ("aiter.ops.cache",)),
    "fused_qk_rope_reshape_and_cache": _moved("fused_kv_cache", "fusions"),
    "greedy_sample": ("aiter.ops.sample",),
}
"""Where each entry is, or was, newest place first. An adapter that calls another function of AITER adds it here."""

Form = tuple[str, Definition]
"""Module and definition."""


def forms(read: Read) -> dict[str, Form]:
    """Every entry that a release's sources have, and where."""
    seen: dict[str, dict[str, Definition]] = {}
    found: dict[str, Form] = {}
    for name, modules in PLACES.items():
        for module in modules:
            if module not in seen:
                text = read(module.replace(".", "/") + ".py")
                seen[module] = definitions(text) if text is not None else {}
            if name in seen[module]:
                found[name] = module, seen[module][name]
                break
    return found


def from_clone(path: str) -> dict[str, Read]:
    """The tagged releases of a git repository, in order. Candidates (rc), dev tags and branches' tags are left out."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", path, *words], capture_output=True, text=True, check=False)

    tags = {m.group(1): t for t in git("tag").stdout.split() if t[0] == "v" and (m := RELEASE.fullmatch(t))}

    def reader(tag: str) -> Read:
        def read(name: str) -> str | None:
            done = git("show", f"{tag}:{name}")
            return done.stdout if done.returncode == 0 else None

        return read

    return {release: reader(tags[release]) for release in sorted(tags, key=version_key)}


def from_wheel(path: Path) -> dict[str, Read]:
    found = RELEASE.search(path.name)
    if not found:
        raise SystemExit(f"{path.name}: its name says no release")
    names = set(zipfile.ZipFile(path).namelist())

    def read(name: str) -> str | None:
        return zipfile.ZipFile(path).read(name).decode() if name in names else None

    return {found.group(1): read}


def from_folder(path: Path, release: str | None) -> dict[str, Read]:
    if not release:
        infos = sorted(path.glob("amd_aiter-*.dist-info"))
        written = path / "aiter" / "_version.py"
        said = infos[0].name if infos else written.read_text(encoding="utf-8") if written.is_file() else ""
        found = RELEASE.search(said)
        if not found:
            raise SystemExit(f"{path}: neither amd_aiter-*.dist-info nor aiter/_version.py says a release; --release")
        release = found.group(1)

    def read(name: str) -> str | None:
        file = path / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    return {release: read}


def forms_known(known: Table) -> dict[str, dict[str, Form]]:
    """What the table holds, release by release."""
    every: dict[str, dict[str, Form]] = {}
    for release in known.releases:
        rows = {name: known.at(name, release) for name in known.entries}
        every[release] = {n: (r.module, Definition(r.parameters, r.visible, r.built)) for n, r in rows.items() if r}
    return every


def rows(every: dict[str, dict[str, Form]]) -> dict[str, list[Row]]:
    """One row for each form of an entry and the releases it holds for."""
    releases, result = sorted(every, key=version_key), {name: [] for name in PLACES}
    for name, made in result.items():
        last: Form | None = None
        for release in releases:
            form = every[release].get(name)
            if form == last:
                continue
            if last is not None:
                made[-1] = made[-1]._replace(last=release)
            if form is not None:
                module, found = form
                made.append(Row(release, None, module, found.visible, found.built, text_of(found.parameters)))
            last = form
    return result


def write(every: dict[str, dict[str, Form]], path: Path) -> None:
    releases = sorted(every, key=version_key)
    note = (
        "made by tools/aiter_contract.py from https://github.com/ROCm/aiter; a row: first release, first one where it no"
        " longer holds, module, how its signature shows, extension module, parameters"
    )
    lines = []
    for name, found in sorted(rows(every).items()):
        body = ",\n".join(f"   {json.dumps(list(row))}" for row in found)
        lines.append(f"  {json.dumps(name)}: [\n{body}\n  ]")
    entries = ",\n".join(lines)
    path.write_text(
        f'{{"note": {json.dumps(note)},\n "releases": {json.dumps(releases)},\n "entries": {{\n{entries}\n }}\n}}\n',
        encoding="utf-8",
    )


def callers(name: str) -> list[str]:
    """The ops whose AITER adapter calls an entry."""
    found = []
    for op in list_ops():
        implementation = op.implementations.get("aiter")
        needs = implementation.requirements if implementation else ()
        if name in [call.name for r in needs for call in r.calls]:
            found.append(op.name)
    return found


def report(every: dict[str, dict[str, Form]], releases: Iterable[str]) -> None:
    """What each of `releases` changes against the one before it in the table."""
    order = sorted(every, key=version_key)
    for release in releases:
        place = order.index(release)
        before = every[order[place - 1]] if place else {}
        for name in PLACES:
            old, new = before.get(name), every[release].get(name)
            if old == new:
                continue
            what = "new" if old is None else "gone" if new is None else f"({text_of(new[1].parameters)}) in {new[0]}"
            print(f"{release}  {name}: {what}; called by {', '.join(callers(name)) or 'no op'}")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--release", help="the release of a folder that does not say it")
    parser.add_argument("--out", type=Path, default=DATA)
    given = parser.parse_args(words)
    known = forms_known(table()) if given.out.exists() and DATA.exists() else {}
    if given.source.suffix == ".whl":
        sources = from_wheel(given.source)
    elif not given.release and ((given.source / ".git").exists() or (given.source / "HEAD").is_file()):
        sources = from_clone(str(given.source))
    else:
        sources = from_folder(given.source, given.release)
    read = {release: forms(reader) for release, reader in sources.items()}
    every = {**known, **read}
    for release, found in read.items():
        if not found:
            print(f"{release}: none of the entries; left out", file=sys.stderr)
            del every[release]
    write(every, given.out)
    report(every, [r for r in sources if r in every and known.get(r) != every[r]])


if __name__ == "__main__":
    main()
