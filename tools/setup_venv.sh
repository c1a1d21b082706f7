#!/bin/sh
# Make the virtual environment: setup_venv.sh VENV EXTRA. A torch that the calling Python already has is used as it is,
# and neither torch nor Triton is installed then; otherwise $TORCH is.
set -eu
venv=$1 extra=$2
log=$venv/setup.log
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -q "$@" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; exit 1; }; }

if "$PYTHON" -c 'import torch' 2>/dev/null; then
    have=1
    [ -x "$venv/bin/python" ] || "$PYTHON" -m venv --system-site-packages "$venv"
else
    have=0
    [ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
fi
: >"$log"
if [ "$have" = 1 ]; then
    why="the one $PYTHON has"
    # keep torch and Triton exactly as they are, whatever an extra asks for
    "$venv/bin/python" - >"$venv/constraints.txt" <<'PY'
from importlib.metadata import distributions
for dist in distributions():
    name = (dist.metadata["Name"] or "").lower()
    if name == "torch" or "triton" in name:
        print(f"{name}=={dist.version}")
PY
    pip install -c "$venv/constraints.txt" -e ".[$extra]"
else
    why="$TORCH from the package index, since $PYTHON has none"
    echo "setting up $venv: $why" >&2
    pip install "$TORCH"
    if [ "$extra" = dev ]; then
        pip install -c constraints-dev.txt -e ".[$extra]" triton
    else
        pip install -c constraints-dev.txt -e ".[$extra]"
    fi
fi
"$venv/bin/python" - "$why" <<'PY'
import sys
import torch
from aiter_ops import platform
here = platform()
print(f"torch {torch.__version__} ({sys.argv[1]}); device: {here.name} ({'no GPU that this torch can use' if not here.has_gpu else here.arch})")
PY
