#!/bin/sh
# Make the virtual environment that vLLM's engine runs in on a CPU: setup_vllm.sh VENV. Nothing of it is shared with
# the environment of the other tests. vLLM is installed without what it needs for pictures and sound alone, and the
# package from this tree, in place, so that its entry point is found.
set -eu
venv=$1
log=$venv/setup.log
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }; }

[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
: >"$log"
echo "setting up $venv: $TORCH, $VLLM" >&2
pip install "$TORCH"
pip install --no-deps "$VLLM"
"$venv/bin/python" - "${VLLM%%=*}" >"$venv/requirements.txt" <<'PY'
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for text in requires(sys.argv[1]) or ():
    need = Requirement(text)
    if (need.marker is None or need.marker.evaluate({"extra": ""})) and not need.name.startswith("torch"):
        need.marker = None
        print(need)
PY
pip install -c constraints-vllm.txt -r "$venv/requirements.txt" pytest pytest-xdist "typer>=0.15" "rich>=13"
pip install --no-deps -e .
