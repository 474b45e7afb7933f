# `make demo` and `make test` need only Python 3.11 or newer (with pip and venv) and make.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# What pip installs is pinned; nothing is installed again until these files change.
CONSTRAINTS := constraints/tests.txt
# A third of pip's time would go into compiling; Python compiles what it imports by itself.
PIP := PIP_CONSTRAINT=$(CONSTRAINTS) $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest

# The CPU's kernel is built under pins of its own: with the headers of the oldest JAX that has them.
NATIVE_PINS := constraints/native.txt
NATIVE_PIP := PIP_CONSTRAINT=$(NATIVE_PINS) PIP_BUILD_CONSTRAINT=$(NATIVE_PINS) $(BIN)/pip install --quiet --disable-pip-version-check --no-deps
NATIVE_CMAKE := $(BIN)/cmake -S native -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python -DFUNCTIONAL_ADAM_TESTS=ON

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check lint types tests tests-all legs bench peers mutate figures native native-sanitized aot aot-check versions dist dist-check docs docs-check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/demo ## set up, train on the handwritten digits with Adam and with SGD, show the result
	$(BIN)/python examples/adam_and_sgd.py

test: $(VENV)/test ## set up, then what CI checks: lint, types and the short tests
	$(MAKE) check

test-all: $(VENV)/test ## set up, then everything: lint, types, all tests, and legs
	$(MAKE) lint types tests-all legs

check: lint types tests ## lint, types and the short tests, without installing anything

lint: ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ## pyright, strict on the package
	$(BIN)/pyright --pythonpath $(BIN)/python

tests: ## pytest, all tests but those marked slow
	$(PYTEST) -n auto

tests-all: ## pytest, all tests
	$(PYTEST) -n auto -m ""

legs: ## the core tests on Python 3.11 with the oldest JAX and 3.13 with the newest, where present
	VENV=$(VENV) sh tools/legs.sh

bench: $(VENV)/test ## time and size against Optax (and torch, if installed)
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/family.py
	$(BIN)/python benchmarks/accuracy.py

peers: $(VENV)/test ## repeat the recorded comparison with PyTorch, live; needs torch in .venv
	$(BIN)/python tests/record_torch.py --check
	$(BIN)/python tests/record_rows.py --check

mutate: $(VENV)/test ## make one mistake at a time in a copy, and see whether the tests notice: a quarter of an hour on 2 cores
	$(BIN)/python tools/mutate.py --jobs 2

figures: $(VENV)/test ## draw every picture of docs/ again: a quarter of an hour on 2 cores
	JAX_PLATFORMS=cpu $(BIN)/python tools/figures/why_exact.py --output docs/why_exact.png
	JAX_PLATFORMS=cpu $(BIN)/python tools/figures/schedules.py --output docs/schedules.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/compare_variants.py --output docs/variants.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/sweep.py --output docs/sweep.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/widths.py --output docs/widths.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/word_vectors.py --output docs/word_vectors.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/adam_and_sgd.py --output docs/adam_and_sgd.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/learn_the_learning_rate.py --output docs/learning_rate.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/train_small_memory.py --output docs/small_memory.png
	JAX_PLATFORMS=cpu $(BIN)/python examples/skip_spikes.py --output docs/skip_spikes.png
	mkdir -p build && rm -rf build/large
	JAX_PLATFORMS=cpu $(BIN)/python examples/train_large.py --folder build/large --output docs/large.png
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/zero.py --picture docs/zero.png
	mkdir -p build && rm -f build/low_memory.jsonl
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/low_memory.py --results build/low_memory.jsonl --parts streams long
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/low_memory.py --results build/low_memory.jsonl --report docs \
		# docs/memory_streams.png docs/memory_loss.png

native: $(VENV)/native ## build the CPU's kernel of native/, install it into .venv, test it; needs a C++ compiler
	$(NATIVE_CMAKE) -B build/native
	$(BIN)/cmake --build build/native
	$(BIN)/ctest --test-dir build/native --output-on-failure
	$(PYTEST) native/tests

native-sanitized: $(VENV)/native ## its C++ tests with the sanitizers of memory, undefined behaviour and threads
	$(NATIVE_CMAKE) -B build/native-memory -DFUNCTIONAL_ADAM_SANITIZERS=address,undefined,float-cast-overflow
	$(BIN)/cmake --build build/native-memory
	$(BIN)/ctest --test-dir build/native-memory --output-on-failure
	$(NATIVE_CMAKE) -B build/native-threads -DFUNCTIONAL_ADAM_SANITIZERS=thread
	$(BIN)/cmake --build build/native-threads
	$(BIN)/ctest --test-dir build/native-threads --output-on-failure

aot: $(VENV)-aot/ready ## compile steps for TPUs and an H100 that are not here, count what they move: minutes
	PYTHONPATH=. $(VENV)-aot/bin/python tools/aot.py v5e v6e v5p h100
	PYTHONPATH=. $(VENV)-aot/bin/python tools/aot_offload.py v5e v6e v5p h100

aot-check: $(VENV)-aot/ready ## the same for one large leaf; fails where a step moves more than it has to
	PYTHONPATH=. $(VENV)-aot/bin/python tools/aot.py --only one --check
	PYTHONPATH=. $(VENV)-aot/bin/python tools/aot_offload.py --check

versions: $(VENV)/test ## all tests here and the legs, then a table of what ran with which versions
	VENV=$(VENV) sh tools/legs.sh here

dist: $(VENV)/test ## build sdist and wheel into dist/
	$(BIN)/python -m build --outdir dist .

dist-check: $(VENV)/test ## build both, install each into an empty environment, run the quick start there
	VENV=$(VENV) sh tools/check_dist.sh

docs: $(VENV)-docs/ready ## build the documentation into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

docs-check: docs ## open every page of site/ in Chromium, wide and narrow, light and dark
	$(VENV)-docs/bin/python tools/check_docs.py

clean: ## remove .venv and everything built
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-docs $(VENV)-aot build/native* dist site site-check adam_and_sgd.png digits.png large.png learning_rate.png skip_spikes.png small_memory.png sweep.png variants.png word_vectors.png distributed_run .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found: run make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/test: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/demo

$(VENV)/native: $(VENV)/test $(NATIVE_PINS) $(wildcard native/*.* native/src/* native/functional_adam_native/*.py)
	$(NATIVE_PIP) ./native cmake ninja
	@touch $@

# An environment of its own: 2 GB of compilers.
$(VENV)-aot/ready: constraints/aot.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found: run make PYTHON=..."; exit 1; }
	test -x $(VENV)-aot/bin/python || $(PYTHON) -m venv $(VENV)-aot
	PIP_CONSTRAINT= $(VENV)-aot/bin/pip install --quiet --disable-pip-version-check --requirement constraints/aot.txt
	@touch $@

# An environment of its own: docstrings are read, not imported, so that not even JAX is needed.
$(VENV)-docs/ready: pyproject.toml constraints/docs.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found: run make PYTHON=..."; exit 1; }
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	PIP_CONSTRAINT= $(VENV)-docs/bin/pip install --quiet --disable-pip-version-check --requirement constraints/docs.txt
	@touch $@
