# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv, once.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test test-slow test-gpu bench bench-gpu bench-pi models pins pins-pi format clean

demo: $(READY)
	$(BIN)/edgekit build recipes/digits/recipe.yaml --target host
	$(BIN)/edgekit build recipes/digits/static.yaml --target host
	$(BIN)/edgekit verify build/digits/host
	$(BIN)/edgekit run build/digits/host recipes/digits/samples/*.png
	$(BIN)/edgekit bench build/digits/host --beside build/digits-static/host

test: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow" -n 2

test-slow: $(READY) $(VENV)/models
	$(BIN)/pytest -m slow -n 2

# On a machine with an NVIDIA GPU: `make test` runs these, too, where there is one.
test-gpu: $(READY)
	$(BIN)/pytest -m gpu tests/gpu

bench: $(READY)
	$(BIN)/python benchmarks/run.py

bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py

# On a Raspberry Pi that qemu emulates: instructions, no times.
bench-pi: $(READY)
	$(BIN)/python benchmarks/instructions.py

models: $(READY) $(VENV)/models
	$(BIN)/python benchmarks/models.py

# Networks to build, no part of edgekit; their own dependencies would bring another torch.
$(VENV)/models: constraints/models.txt | $(READY)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps -r constraints/models.txt
	@touch $@

# What a device installs, the newest versions that each Python can have. Review what changes.
pins: $(READY)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) uv
	for extra in onnxruntime litert cuda12 cuda13 jetpack6; do \
	  $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 \
	    --only-binary :all: --no-annotate --custom-compile-command "make pins" \
	    --extra $$extra --extra images --output-file targets/$$extra.txt pyproject.toml && \
	  sed -i "s/ \(and\|;\) sys_platform == 'linux'$$//" targets/$$extra.txt || exit 1; \
	done

# What the emulated Raspberry Pi of the tests is made of; after `make pins`, or where one is gone.
pins-pi: $(READY)
	$(BIN)/python -m tests.pi.renew

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Done again only when what is to be installed changes.
$(READY): pyproject.toml constraints/host.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "edgekit builds with Python 3.11 or newer; found `$(PYTHON) --version 2>&1`." \
	  "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints/host.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
