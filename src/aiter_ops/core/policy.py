"""What the user wants of providers: rules, where each comes from, and how they combine.

Grammar (no character needs quoting in a shell): rules are separated by commas.

    rms_norm=triton           a preference for one op or family; alternatives by "/": moe=aiter/torch
    triton/torch              the same for all ops
    -aiter, norm=-aiter       an exclusion, for all ops or for one op or family
    rms_norm=+aiter           as a preference, and known-bad evidence against it is lifted
    @plan.json                rules from a plan file
    off                       every op is its reference
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .platforms import Platform

PLAN, ENVIRONMENT = -1, 0
"""Ranks of rules: a plan, the environment, then 1, 2 … for `use` by depth. A higher rank wins over a lower one."""


class SettingsError(ValueError):
    """A rule, setting or plan that cannot be taken as written."""


class Rule(NamedTuple):
    """One wish: for `target` (an op, a family, or ``*``) prefer `providers` in order, or exclude one."""

    target: str
    providers: tuple[str, ...]
    origin: str
    rank: int = ENVIRONMENT
    exclude: bool = False
    lift: bool = False

    def __str__(self) -> str:
        sign = "-" if self.exclude else "+" if self.lift else ""
        body = sign + "/".join(self.providers)
        return f"{body if self.target == '*' else f'{self.target}={body}'} ({self.origin})"

    def covers(self, op: str, family: str) -> bool:
        return self.target in ("*", op, family)


class Policy(NamedTuple):
    """All rules together. `flags_off` maps a VLLM_ROCM_USE_AITER* flag that is off to the text to give as reason.

    batch_invariant: a row's or token's result must not depend on the rest of the batch.
    """

    rules: tuple[Rule, ...] = ()
    strict: bool = False
    off: bool = False
    flags_off: tuple[tuple[str, str], ...] = ()
    batch_invariant: bool = False

    def preference(self, op: str, family: str) -> tuple[tuple[str, ...], str | None]:
        """The providers preferred for an op in order, and the rule's text: highest rank, most specific, last written."""
        wishes = [
            (r.rank, (op, family, "*")[::-1].index(r.target), i)
            for i, r in enumerate(self.rules)
            if not r.exclude and r.covers(op, family)
        ]
        if not wishes:
            return (), None
        rule = self.rules[max(wishes)[2]]
        return rule.providers, str(rule)

    def exclusion(self, op: str, family: str, provider: str, flag: str | None) -> str | None:
        """Why the policy keeps `provider` from an op, or None."""
        if self.off and provider != "torch":
            return "AITER_OPS=off"
        for rule in self.rules:
            if rule.exclude and provider in rule.providers and rule.covers(op, family):
                return f"excluded by rule {rule}"
        if provider == "aiter":
            for name, text in self.flags_off:
                if name in ("VLLM_ROCM_USE_AITER", flag):
                    return text
        return None

    def lifts(self, op: str, family: str, provider: str) -> bool:
        """Whether a rule ``op=+provider`` lifts known-bad evidence."""
        return any(r.lift and provider in r.providers and r.covers(op, family) for r in self.rules)

    def with_rules(self, rules: Iterable[Rule], strict: bool | None = None) -> Policy:
        return self._replace(rules=self.rules + tuple(rules), strict=self.strict if strict is None else strict)


def _known(kind: str, name: str, names: Iterable[str], origin: str) -> str:
    names = sorted(names)
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SettingsError(f"{origin}: unknown {kind} {name!r}; {hint}known: {', '.join(names)}")
    return name


def parse_rules(
    text: str, origin: str, rank: int, targets: Iterable[str], providers: Iterable[str], platform: Platform
) -> tuple[tuple[Rule, ...], bool]:
    """Rules of a text, and whether it says ``off``. SettingsError names what is wrong and the nearest known name."""
    targets, providers = list(targets), list(providers)
    rules: list[Rule] = []
    words = [w.strip() for w in text.split(",")]
    if "off" in words:
        if words != ["off"]:
            raise SettingsError(f"{origin}: 'off' stands alone; given: {text!r}")
        return (), True
    for word in filter(None, words):
        if word.startswith("@"):
            rules += read_plan(Path(word[1:]), targets, providers, platform)
            continue
        target, equals, body = word.rpartition("=")
        if equals:
            _known("op or family", target, targets, origin)
        sign = body[:1] if body[:1] in ("-", "+") else ""
        names = tuple(body[len(sign) :].split("/"))
        if sign and len(names) > 1:
            raise SettingsError(f"{origin}: {word!r}: '{sign}' takes one provider")
        if sign == "+" and not equals:
            raise SettingsError(f"{origin}: {word!r}: '+' needs an op or family: op=+provider")
        for name in names:
            _known("provider", name, providers, f"{origin}: {word!r}")
        rules.append(Rule(target or "*", names, origin, rank, exclude=sign == "-", lift=sign == "+"))
    return tuple(rules), False


def read_plan(path: Path, targets: Iterable[str], providers: Iterable[str], platform: Platform) -> list[Rule]:
    """The rules of a plan file, JSON: {"version": 1, "platform": {"arch": …}, "rules": {"op or family": "a/b"}}.

    Names in it are looked up, never imported. A plan made for another architecture is refused.
    """
    origin = f"plan {path.name}"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SettingsError(f"{origin}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict) or set(data) != {"version", "platform", "rules"} or data["version"] != 1:
        raise SettingsError(f"{origin}: accepted: an object with version (1), platform and rules")
    made_for, rules = data["platform"], data["rules"]
    if not isinstance(made_for, dict) or not isinstance(made_for.get("arch"), str) or set(made_for) - {"arch"}:
        raise SettingsError(f'{origin}: platform: accepted: {{"arch": "gfx942"}}')
    if made_for["arch"] != platform.arch:
        raise SettingsError(f"{origin}: made for {made_for['arch']}; this machine is {platform.arch}")
    if not isinstance(rules, dict) or not all(isinstance(v, str) for v in rules.values()):
        raise SettingsError(f"{origin}: rules: accepted: an object of op or family names to 'provider/provider'")
    text = ",".join(body if target == "*" else f"{target}={body}" for target, body in rules.items())
    if "@" in text:
        raise SettingsError(f"{origin}: a plan names no other plan")
    return list(parse_rules(text, origin, PLAN, targets, providers, platform)[0])
