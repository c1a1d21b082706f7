"""Compare `rocm_aiter_ops` with vLLM's class, method by method and parameter by parameter. Nothing of vLLM is imported.

python tools/vllm_conformance.py [SOURCE] [--write RELEASE]

SOURCE: vLLM's wheel, its source tree, or its ``_aiter_ops.py``; without one, the installed vLLM. Prints what differs
with the reason, and fails where a difference has none in `REASONS`. --write: also write the table of
docs/rocm-aiter-ops.md, as that of this RELEASE.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiter_ops.integrations.rocm_aiter_ops import rocm_aiter_ops
from aiter_ops.integrations.rocm_aiter_ops.later import LATER
from aiter_ops.integrations.rocm_aiter_ops.predicates import PREDICATES
from aiter_ops.integrations.rocm_aiter_ops.schemas import FACES, GETTERS, ROWS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "rocm-aiter-ops.md"
FILE = "vllm/_aiter_ops.py"
TABLE = re.compile(r"(?<=<!-- begin conformance -->\n).*?(?=<!-- end conformance -->)", re.S)

REASONS = {
    "op rocm_aiter_sparse_attn_indexer": "kv_cache is written, and the schema says so; the op itself is later",
    "op rocm_aiter_fused_allreduce_rmsnorm": "later: all_reduce_rms_norm",
    "op rocm_aiter_fused_allreduce_rmsnorm_quant_per_group": "later: all_reduce_rms_norm with quantisation",
    "op rocm_aiter_fused_allreduce_rmsnorm_quant_per_group_with_bf16_norm": (
        "later: all_reduce_rms_norm with quantisation"
    ),
    "fused_moe": "vLLM has q_dtype_a since 0.32",
    "op rocm_aiter_fused_moe": "vLLM has q_dtype_a since 0.32",
    "do_qk_norm_rope_kvcache_update": "vLLM has return_kv since 0.33; before, k was always returned",
    "is_indexer_top_k_supported": "vLLM has it since 0.32, topk_tokens since 0.33",
    "get_aiter_quant_type": "vLLM had it until 0.32",
    "is_asm_fp4_gemm_dynamic_quant_enabled": "vLLM had it until 0.32",
    "gemm_a8w8": "the older name of w8a8_gemm",
    "triton_rotary_embed": "the registered op 12 as a method",
    "why_off": "what a predicate that is False would not say",
}
"""Method, or "op" and the name of an op -> why it differs on purpose. Methods of `LATER` have theirs there."""


SINCE = {
    "0.32": (
        *("is_triton_sparse_mla_enabled", "is_gdn_flydsl_prefill_available", "fused_moe_supports_quant_dtype_a"),
        *("is_indexer_top_k_enabled", "get_fused_mla_dual_rms_norm_group_quant_op"),
    ),
    "0.33": (
        *("is_topk_gating_enabled", "is_asm_fp4_gemm_supported", "is_flydsl_quick_reduce_available"),
        *("is_kda_gluon_prefill_available", "is_kda_gluon_decode_available", "is_asm_fp4_gemm_tuned"),
        *("is_triton_blockscale_bpreshuffle_gemm_tuned", "get_per_tensor_quant_op", "topk_gating"),
        *("get_fused_rms_fp8_per_tensor_static_quant_op", "get_fused_add_rms_fp8_per_tensor_static_quant_op"),
        *("gather_kv_b_proj", "triton_gemm_a8w8_blockscale_preshuffle", "op rocm_aiter_topk_gating"),
        *("op rocm_aiter_gather_kv_b_proj", "op rocm_aiter_triton_gemm_a8w8_blockscale_preshuffle"),
        "op rocm_aiter_fused_rms_fp8_per_tensor_static_quant",
        "op rocm_aiter_fused_add_rms_fp8_per_tensor_static_quant",
    ),
}
"""Release of vLLM -> what is new in it, and so is not in an older one."""


class Parameter(NamedTuple):
    name: str
    kind: str
    default: str


class Form(NamedTuple):
    """How something is called, and what it writes to (of registered ops)."""

    parameters: tuple[Parameter, ...]
    mutates: tuple[str, ...] = ()


# --- vLLM's side, by its source ---------------------------------------------------------------------------------------


def source_of(path: str | None) -> str:
    """The text of vLLM's module."""
    if path is None:
        spec = importlib.util.find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("vLLM is not installed; name its wheel, source tree or _aiter_ops.py")
        return (Path(next(iter(spec.submodule_search_locations))) / "_aiter_ops.py").read_text(encoding="utf-8")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(FILE).decode()
    place = Path(path)
    return (place / FILE if place.is_dir() else place).read_text(encoding="utf-8")


def _given(args: ast.arguments, method: bool) -> tuple[Parameter, ...]:
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    found = [_parameter(a, "", d) for a, d in zip(plain, defaults, strict=True)]
    if args.vararg:
        found.append(Parameter(args.vararg.arg, "*", ""))
    found += [_parameter(a, "keyword", d) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        found.append(Parameter(args.kwarg.arg, "**", ""))
    return tuple(found[1:] if method and found and found[0].name in ("cls", "self") else found)


def _parameter(arg: ast.arg, kind: str, default: ast.expr | None) -> Parameter:
    return Parameter(arg.arg, kind, "" if default is None else ast.unparse(default))


def forms_of_vllm(text: str) -> dict[str, Form]:
    """Public methods by name, and registered ops as ``op NAME``."""
    tree = ast.parse(text)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    forms: dict[str, Form] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "rocm_aiter_ops":
            for m in node.body:
                if isinstance(m, ast.FunctionDef) and not m.name.startswith("_"):
                    forms[m.name] = Form(_given(m.args, True))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "direct_register_custom_op":
            named = {k.arg: k.value for k in node.keywords}
            written = named.get("mutates_args", ast.Constant(None))
            mutates = tuple(ast.literal_eval(written) or ()) if not isinstance(written, ast.Name) else ()
            impl = functions.get(ast.unparse(named["op_func"]))
            name = f"op {ast.literal_eval(named['op_name'])}"
            forms[name] = Form(_given(impl.args, False) if impl else (), mutates)
    return forms


# --- ours -------------------------------------------------------------------------------------------------------------

KINDS = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
}


def _called(fn: Callable[..., Any]) -> tuple[Parameter, ...]:
    parameters = inspect.signature(fn).parameters.values()
    return tuple(
        Parameter(p.name, KINDS.get(p.kind, ""), "" if p.default is p.empty else _text(p.default)) for p in parameters
    )


def _text(default: object) -> str:
    return str(default) if str(default).startswith("torch.") else repr(default)


def forms_of_ours() -> dict[str, Form]:
    names = [n for n in vars(rocm_aiter_ops) if not n.startswith("_")]
    forms = {n: Form(_called(getattr(rocm_aiter_ops, n))) for n in names}
    return forms | {f"op {row.op}": Form(_called(row.fn), row.mutates) for row in ROWS.values()}


# --- the comparison ---------------------------------------------------------------------------------------------------


ABSENT = "not in vLLM's"


def difference(name: str, theirs: Form | None, ours: Form | None) -> str:
    """What differs, or ""."""
    if name in LATER and ours is not None:
        return "raises"
    if ours is None:
        return "not here"
    if theirs is None:
        return ABSENT
    parts = []
    # an op implemented in another module: its parameters are not in this one
    if theirs.parameters and theirs.parameters != ours.parameters:
        for a, b in zip(theirs.parameters, ours.parameters, strict=False):
            if a != b:
                parts.append(f"{a.name}={a.default or 'required'} is {b.name}={b.default or 'required'}")
        parts += [f"{p.name} is missing" for p in theirs.parameters[len(ours.parameters) :]]
        parts += [f"{p.name} is added" for p in ours.parameters[len(theirs.parameters) :]]
    if set(theirs.mutates) != set(ours.mutates):
        parts.append(f"writes {', '.join(ours.mutates)}, not {', '.join(theirs.mutates) or 'nothing'}")
    return "; ".join(parts)


def reason(name: str, found: str) -> str:
    if name in LATER:
        return f"later: {LATER[name]}"
    release = next((release for release, names in SINCE.items() if name in names), "")
    return f"vLLM has it since {release}" if release and found == ABSENT else REASONS.get(name, "")


def compare(text: str) -> list[tuple[str, str, str]]:
    """(name, difference, reason) of everything on either side, in vLLM's order."""
    theirs, ours = forms_of_vllm(text), forms_of_ours()
    return [
        (name, (found := difference(name, theirs.get(name), ours.get(name))), reason(name, found) if found else "")
        for name in dict.fromkeys((*theirs, *ours))
    ]


def _stands_for(name: str) -> str:
    if name in LATER:
        return "raises `Later`"
    if name in PREDICATES:
        return "predicate"
    if name in GETTERS:
        return f"torch op, row {GETTERS[name]}"
    for face in FACES:
        if name in face.methods or name == f"op {face.op}":
            row = f"row {face.row}: " if name.startswith("op ") else ""
            return row + (", ".join(f"`{op}`" for op in face.of) or "raises `Later`")
    return "" if name.startswith("op ") else "state"


def markdown(rows: list[tuple[str, str, str]], release: str) -> str:
    lines = [f"Against vLLM {release}:", "", "| vLLM's name | face of | differs | reason |", "|---|---|---|---|"]
    for name, found, why in rows:
        shown = f"`{name.removeprefix('op ')}` (op)" if name.startswith("op ") else f"`{name}`"
        lines.append(f"| {shown} | {_stands_for(name)} | {found} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", nargs="?")
    parser.add_argument("--write", metavar="RELEASE")
    given = parser.parse_args()
    rows = compare(source_of(given.source))
    differing = [row for row in rows if row[1]]
    for name, found, why in differing:
        print(f"{name}: {found} ({why or 'NO REASON'})")
    print(f"{len(rows)} names, {len(differing)} differ, {sum(not why for _, _, why in differing)} without a reason")
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(TABLE.sub(lambda _: markdown(rows, given.write), page), encoding="utf-8")
    return 0 if all(why for _, _, why in differing) else 1


if __name__ == "__main__":
    raise SystemExit(main())
