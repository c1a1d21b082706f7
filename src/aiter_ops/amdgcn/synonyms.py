"""One name for one meaning: RDNA's mnemonics for what CDNA has too, as CDNA's (LLVM, "Syntax of Instructions" of GFX9, GFX11
and GFX12; AMD, "RDNA3" and "RDNA4 Instruction Set Architecture").
"""

from __future__ import annotations

import functools
import re

_NAMES = {
    "s_and_not1_b32": "s_andn2_b32",
    "s_and_not1_b64": "s_andn2_b64",
    "s_or_not1_b32": "s_orn2_b32",
    "s_or_not1_b64": "s_orn2_b64",
    **{f"s_and_not1_saveexec_{kind}": f"s_andn2_saveexec_{kind}" for kind in ("b32", "b64")},
    **{f"s_and_not0_saveexec_{kind}": f"s_andn1_saveexec_{kind}" for kind in ("b32", "b64")},
    "s_add_co_u32": "s_add_u32",
    "s_sub_co_u32": "s_sub_u32",
    "s_add_co_i32": "s_add_i32",
    "s_sub_co_i32": "s_sub_i32",
    "s_add_co_ci_u32": "s_addc_u32",
    "s_sub_co_ci_u32": "s_subb_u32",
    "s_addk_co_i32": "s_addk_i32",
    "v_add_nc_u32": "v_add_u32",
    "v_sub_nc_u32": "v_sub_u32",
    "v_subrev_nc_u32": "v_subrev_u32",
    "v_add_nc_u16": "v_add_u16",
    "v_sub_nc_u16": "v_sub_u16",
    "v_add_co_ci_u32": "v_addc_co_u32",
    "v_mad_co_u64_u32": "v_mad_u64_u32",
    "v_mad_co_i64_i32": "v_mad_i64_i32",
    "v_sub_co_ci_u32": "v_subb_co_u32",
    "v_subrev_co_ci_u32": "v_subbrev_co_u32",
}
_LOADED = {"u8": "ubyte", "i8": "sbyte", "u16": "ushort", "i16": "sshort", "b32": "dword"}
_LOADED |= {"b64": "dwordx2", "b96": "dwordx3", "b128": "dwordx4", "b256": "dwordx8", "b512": "dwordx16"}
_STORED = {"b8": "byte", "b16": "short", "d16_hi_b8": "byte_d16_hi", "d16_hi_b16": "short_d16_hi"}
_STORED |= {k: v for k, v in _LOADED.items() if k[0] == "b"}
_LOADED |= {"d16_b16": "short_d16", "d16_hi_b16": "short_d16_hi"}


@functools.cache
def one_name(mnemonic: str) -> str:
    """CDNA's mnemonic (both without the suffix of an encoding); what has none is its own."""
    if (known := _NAMES.get(mnemonic)) is not None:
        return known
    if found := re.fullmatch(r"((?:global|buffer|scratch|s)_load_)(\w+)", mnemonic):
        return found[1] + _LOADED.get(found[2], found[2])
    if found := re.fullmatch(r"((?:global|buffer|scratch)_store_)(\w+)", mnemonic):
        return found[1] + _STORED.get(found[2], found[2])
    if found := re.fullmatch(r"ds_(load|store)(_2addr)?(_stride64)?(_\w+)", mnemonic):
        how = "read" if found[1] == "load" else "write"
        return f"ds_{how}{'2' if found[2] else ''}{'st64' if found[3] else ''}{found[4]}"
    return mnemonic
