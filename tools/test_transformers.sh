#!/bin/sh
# Smoke of norm and attention with other releases of transformers: test_transformers.sh VENV VERSION...
# Each release goes into a directory of its own beside the environment, without its dependencies, and is put before it.
set -eu
venv=$1
shift
for version in "$@"; do
    target=$venv/transformers-$version
    if [ ! -d "$target/transformers" ]; then
        "$venv/bin/python" -m pip --disable-pip-version-check -q install --no-deps --no-compile \
            --target "$target" "transformers==$version"
    fi
    echo "transformers $version"
    PYTHONPATH="$target${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -q -n 0 \
        tests/integrations/test_architectures.py tests/integrations/test_kernelize.py \
        -k "test_the_meaning_of_norms or (test_the_whole_model and (Llama or Gemma-3 or DeepSeek-V3 or gpt-oss))"
done
