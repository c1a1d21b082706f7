"""`register`, which vLLM calls in its front end, its engine core and every worker."""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
import operator
import sys
import threading
from collections import Counter
from typing import Any

from aiter_ops.core import runtime

from . import table
from .table import INSTALLERS, WINDOW, Override

log = logging.getLogger("vllm.aiter_ops")
"""Below vLLM's own logger, so that its handlers, levels and process names apply."""

_lock = threading.Lock()
_registered = False


class PluginError(RuntimeError):
    """The installed vLLM is not as the table of overrides has it. The engine stops."""


def register() -> None:
    """Put the layer into this process's vLLM, once; a second call does nothing.

    What, says AITER_OPS_VLLM: 0 nothing, 1 vLLM's extension points, all also what vLLM has no hook for. One line of
    the log says what was registered. Raises SettingsError for settings that cannot be taken, and PluginError where a
    target is missing or called otherwise than known; vLLM lets both end the engine.
    """
    global _registered
    with _lock:
        if not _registered:
            _register()
            _registered = True


def _register() -> None:
    if runtime.state.settings is not None:
        runtime.reload_settings()  # it may have been read before vLLM was imported, which changes what unset flags mean
    mode, off = runtime.settings().vllm, runtime.policy().off
    if mode == "0" or off:
        _say("registers nothing: %s", "AITER_OPS=off" if off else "AITER_OPS_VLLM=0")
        return
    import vllm
    from vllm.platforms import current_platform

    if not table.in_window(vllm.__version__):
        text = "aiter-ops registers nothing: vLLM %s is outside of the tested window %s"
        log.warning(text, vllm.__version__, WINDOW)
        return
    platform = platform_name(current_platform)
    if platform is None:
        _say("registers nothing: vLLM's platform %s is none of rocm, cuda, cpu", current_platform.device_name)
        return
    rows = [row for row in table.selected(mode, platform) if present(row)]
    problems = [f"{row.kind} {row.name}: {problem}" for row in rows if (problem := mismatch(row))]
    if problems:
        raise PluginError(
            f"aiter-ops does not fit this vLLM {vllm.__version__}: {'; '.join(problems)}. "
            "AITER_OPS_VLLM=0 runs vLLM without it"
        )
    for module, group in itertools.groupby(sorted(rows, key=_module), key=_module):
        importlib.import_module(f"{__package__}.{module}").install(list(group), platform)
    counts = Counter(row.kind for row in rows)
    what = ", ".join(f"{kind}: {count}" for kind, count in counts.items())
    _say(
        "(AITER_OPS_VLLM=%s) registered in vLLM %s on %s: %s; `aiter-ops doctor` lists them",
        *(mode, vllm.__version__, platform, what),
    )


def _say(text: str, *args: object) -> None:
    """The line for the log. In a front end vLLM sets up its logging after its plugins: there the line goes to stderr,
    where vLLM would log at all.
    """
    from vllm import envs

    line = "aiter-ops " + text % args
    if logging.getLogger("vllm").handlers or not envs.VLLM_CONFIGURE_LOGGING:
        log.info("%s", line)
    elif logging.getLevelName(envs.VLLM_LOGGING_LEVEL) <= logging.INFO:
        print(f"INFO {line}", file=sys.stderr)


def _module(row: Override) -> str:
    return INSTALLERS[row.kind]


def platform_name(current: Any) -> str | None:
    """rocm, cuda or cpu for vLLM's platform object; None for another."""
    questions = {table.ROCM: current.is_rocm, table.CUDA: current.is_cuda, table.CPU: current.is_cpu}
    return next((name for name, ask in questions.items() if ask()), None)


# --- the check of versions --------------------------------------------------------------------------------------------


def _found(row: Override) -> Any:
    """The target. ImportError or AttributeError where it is not there."""
    module, _, path = row.where.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


def present(row: Override) -> bool:
    """Whether the row is for this release at all: False for what only later releases have, and for torch ops that
    vLLM did not register (it does where it found AITER).
    """
    if row.kind == "torch op":
        from .aiter_class import registered

        return registered(row)
    if row.name in table.NEW_IN_033:
        try:
            _found(row)
        except AttributeError:
            return False
    return True


def mismatch(row: Override) -> str | None:
    """How the installed vLLM differs from what the row says; None where it does not."""
    if not row.where:
        return None
    try:
        target = _found(row)
    except (ImportError, AttributeError) as error:
        return f"{row.where} is not there ({error})"
    if row.kind == "class method":
        from .aiter_class import differs

        return differs(row.name, target)
    if row.takes is None:
        return None
    given = parameters(target)
    if given != row.takes and given != ("self", *row.takes):
        return f"it takes ({', '.join(given)}), known is ({', '.join(row.takes)})"
    return None


def parameters(target: Any) -> tuple[str, ...]:
    """Names of the parameters of a function, a method, or an op of vLLM's IR."""
    signature = getattr(target, "_py_signature", None) or inspect.signature(target)
    return tuple(signature.parameters)
