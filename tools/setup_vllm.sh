#!/bin/sh
# Make the virtual environment that vLLM's engine runs in on a CPU: setup_vllm.sh VENV. Nothing of it is shared with
# the environment of the other tests. Left out is what vLLM needs for pictures, sound and guessing of tokens alone, and
# Triton, which has no backend for CPUs: more than a gigabyte. The package is installed from this tree, in place, so
# that its entry point is found. Only what an engine imports is compiled to bytecode.
set -eu
venv=$1
log=$venv/setup.log
python=$venv/bin/python
loudly() {
    "$@" >>"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        echo "$venv could not be set up: $*" >&2
        exit 1
    }
}
install() { loudly "$python" -m pip --disable-pip-version-check -q install --no-compile "$@"; }
needs() { # what the named distributions need, without what is left out
    "$python" - "$@" <<'PY'
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"opencv-python-headless", "numba", "torch", "torchaudio", "torchcodec", "torchvision", "triton"}
for text in {text for name in sys.argv[1:] for text in requires(name) or ()}:
    need = Requirement(text)
    if (need.marker is None or need.marker.evaluate({"extra": ""})) and need.name not in LEFT_OUT:
        need.marker, need.extras = None, need.extras - {"image"}
        print(need)
PY
}

[ -x "$python" ] || "$PYTHON" -m venv "$venv"
: >"$log"
echo "setting up $venv: $TORCH, $VLLM" >&2
install "$TORCH"
install --no-deps "$VLLM"
needs "${VLLM%%=*}" >"$venv/requirements.txt"
install --no-deps "$(grep '^xgrammar' "$venv/requirements.txt")" # it alone asks for Triton
needs "${VLLM%%=*}" xgrammar | grep -v '^xgrammar' >"$venv/requirements.txt"
install -c "$PINS" -r "$venv/requirements.txt" pytest pytest-xdist "typer>=0.15" "rich>=13"
install --no-deps -e .
loudly env -u PYTHONDONTWRITEBYTECODE "$python" -c "
import aiter_ops
import vllm.entrypoints.openai.api_server
import vllm.model_executor.models.deepseek_v2
import vllm.model_executor.models.llama
import vllm.v1.engine.core
import vllm.v1.worker.cpu_worker
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from vllm import LLM
"
