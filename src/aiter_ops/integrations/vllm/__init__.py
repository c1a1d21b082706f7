"""The plugin that vLLM loads by itself: its extension points, and on request its own AITER layer, on the ops.

vLLM calls `register` in every one of its processes. What it puts where is data (`table`), so that `doctor` can list it
without importing vLLM; `plugin` checks and installs it; the other modules hold the replacements, and import vLLM.
"""

from __future__ import annotations


def register() -> None:
    """The entry point: `plugin.register`. Imported only when called, since vLLM merely logs a plugin whose module
    cannot be imported, while what it raises when called ends the engine.
    """
    from . import plugin

    plugin.register()
