# make run   sets everything up in .venv and runs a bundled model on the op layer
# make test  the same, and runs the tests
# make aot   the same, and compiles every Triton kernel for the AMD targets, which takes minutes
# make emulated   the same, and executes every Triton kernel as AMD machine code on the CPU, which takes minutes
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: run test aot emulated lint docs clean

# the bundled models are so small that threads would only wait for each other
run: $(VENV)/run
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/aiter-ops run --compare $(ARGS)

test: $(VENV)/test lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

aot: $(VENV)/test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m aot $(ARGS)

emulated: $(VENV)/test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m emulated $(ARGS)

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

clean:
	rm -rf $(VENV)
