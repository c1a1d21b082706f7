"""What `doctor` says of each op and provider: usable here, or the first reason why not, down to the function called."""

from __future__ import annotations

from typing import Any

from aiter_ops.core import runtime
from aiter_ops.core.op import Op
from aiter_ops.core.platforms import Platform
from aiter_ops.core.policy import Policy
from aiter_ops.core.provider import get_provider

from .advice import advice


def row(op: Op, provider: str, here: Platform, rules: Policy, imports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One op of one provider; `imports` holds what importing a provider's library gave, where it was tried.

    arguments: whether the answer can still be no for some arguments. calls: the functions of the provider's library
    that it calls here, with what is wrong with each.
    """
    source, note, depends, calls = get_provider(provider), None, False, []
    reason: str | None
    if reason := source.requirements.unmet(here):
        broken = False
    else:
        try:
            found = next(c for c in runtime.find(op, here, rules) if c.provider == provider)
            broken, reason, note = False, found.out, found.note
            depends = reason is None and found.predicate is not None
            if found.implementation and source.symbols:
                calls = [s._asdict() for s in source.symbols(found.implementation.calls, here)]
        except Exception as error:
            broken, reason = True, f"its module fails to import: {type(error).__name__}: {error}"
    if reason is None and provider in imports:
        reason = _not_imported(imports[provider], calls)
    made = {"op": op.name, "family": op.family, "provider": provider, "usable": reason is None, "reason": reason}
    cold = sorted({c["cold"] for c in calls if c["cold"]})
    return {
        **made,
        "note": note,
        "advice": advice(reason) if reason else _warm(cold),
        "arguments": depends,
        "calls": calls,
        **({"broken": True} if broken else {}),
    }


def _not_imported(tried: dict[str, Any], calls: list[dict[str, Any]]) -> str | None:
    if tried["error"]:
        return f"import failed: {tried['error']}"
    wrong = {c["name"]: tried["entries"].get(c["name"]) for c in calls}
    return next((f"import failed: {name}: {text}" for name, text in wrong.items() if text), None)


def _warm(cold: list[str]) -> str:
    return f"the first call compiles {', '.join(cold)}, which takes minutes" if cold else ""


def families(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each provider and family: how many of its ops are usable, and why not the others."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for r in rows:
        start = {"provider": r["provider"], "family": r["family"], "ops": 0, "reasons": {}, "served": []}
        family = found.setdefault((r["provider"], r["family"]), start)
        family["ops"] += 1
        if r["usable"]:
            family["served"].append(r["op"])
        else:
            text = "has no implementation" if "has no implementation" in r["reason"] else r["reason"]
            family["reasons"][text] = family["reasons"].get(text, 0) + 1
        if r.get("broken"):
            family["broken"] = True
    for family in found.values():
        family["advice"] = next((a for reason in family["reasons"] if (a := advice(reason))), "")
    return list(found.values())
