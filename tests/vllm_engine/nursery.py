"""Imports vLLM once, and runs scripts in processes forked from there: importing it takes most of a small engine's time.

A line of JSON on stdin is a script: its arguments, environment, and files for what it prints. The answer is its exit
status. Nothing of the layer is imported and no plugin loaded before a script does.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

import vllm.plugins
from vllm import LLM  # noqa: F401 - what every script imports


def become(script: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(script["env"])
    for stream, path in enumerate((os.devnull, script["out"], script["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    sys.argv = script["args"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    assert not vllm.plugins.plugins_loaded
    assert "aiter_ops" not in sys.modules
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
