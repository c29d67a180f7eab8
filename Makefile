# `make demo` and `make test` need only Python >= 3.10 and pip, and a C++ compiler for the tests of compiled stripe kernels:
# each sets itself up. `make matrix` runs the tests on the oldest and on the newest PyTorch that is supported, each in an
# environment of its own.
PYTHON        ?= python3
OLDEST_PYTHON ?= python3.10
NEWEST_PYTHON ?= $(PYTHON)
VENV          ?= .venv
WORKERS       ?= 2
BIN           := $(VENV)/bin
PIP           := -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint types unit docs matrix oldest newest wheel coverage clean

demo: $(VENV)/.demo
	$(BIN)/secateurs demo

test: $(VENV)/.dev
	@$(MAKE) --no-print-directory lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Warnings are errors: a link that leads nowhere, a name that is not there.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

matrix: oldest newest

oldest newest: %: $(VENV)-%/.dev
	$(VENV)-$@/bin/python -m pytest -n $(WORKERS) --dist worksteal

wheel: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python $(PIP) install -e '.[release]' -c constraints/pinned.txt
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# The networks that people use, in an environment of their own; resumes where it stopped.
coverage: $(VENV)-coverage/.packages
	$(VENV)-coverage/bin/python benchmarks/coverage.py --out coverage
	$(VENV)-coverage/bin/python benchmarks/coverage.py --out coverage --family peers --seconds 60
	$(VENV)-coverage/bin/python benchmarks/coverage.py --out coverage --markdown

# torch first: where a CPU build is at hand, nothing else may pull in the GPU packages.
$(VENV)/.torch: constraints/pinned.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install torch -c $<
	@touch $@

$(VENV)-oldest/.torch: constraints/oldest.txt
	$(OLDEST_PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install torch numpy -c $<
	@touch $@

$(VENV)-newest/.torch: constraints/newest.txt
	$(NEWEST_PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install torch -c $<
	@touch $@

$(VENV)-coverage/.packages: benchmarks/coverage.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) install torch -c $<
	$(@D)/bin/python $(PIP) install -e . -r $<
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python $(PIP) install -e '.[demo]' -c constraints/pinned.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python $(PIP) install -e '.[dev,export,openvino]' -c constraints/pinned.txt
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/python $(PIP) install -e '.[docs]' -c constraints/pinned.txt
	@touch $@

$(VENV)-newest/.dev: $(VENV)-newest/.torch pyproject.toml
	$(@D)/bin/python $(PIP) install -e '.[dev,export,openvino]' -c constraints/newest.txt
	@touch $@

# The exporters of the oldest PyTorch refuse ordinary networks.
$(VENV)-oldest/.dev: $(VENV)-oldest/.torch pyproject.toml
	$(@D)/bin/python $(PIP) install -e '.[dev]' -c constraints/oldest.txt
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-coverage build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
