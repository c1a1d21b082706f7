"""The plugin that vLLM loads by itself: its extension points, and on request its own AITER layer, on the ops.

vLLM calls `plugin.register` in every one of its processes. What it puts where is data (`table`), so that `doctor` can
list it without importing vLLM; the other modules hold the replacements, and import vLLM.
"""
