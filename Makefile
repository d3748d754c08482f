# Two commands for a newcomer: make demo, make test. Each makes the virtual environment and installs what it needs.
PYTHON ?= python3
PIP_VERSION := 25.3
TORCH_VERSION := 2.13.0
EXTRAS := torch,analysis,giotto
MODERN_EXTRAS := torch,analysis
SOURCES := pyproject.toml constraints.txt constraints-modern.txt
# Small matrices: more than one BLAS or OpenMP thread per test only adds noise.
PYTEST_ENVIRONMENT := OMP_NUM_THREADS=1 PYTHONWARNINGS=default
# Test files side by side; within one in order. WORKERS=0 runs everything in one process, for a debugger.
WORKERS ?= 2
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile

.PHONY: help demo install test test-full test-modern coverage lint format typecheck benchmark golden constraints clean
.DEFAULT_GOAL := help

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 16

# pip keeps scratch of its own; a stamp per purpose lets a second call start at once.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else "dynome: the tested set needs Python 3.11 or 3.12, this is %d.%d; call make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet "pip==$(PIP_VERSION)"

.venv/.runtime: .venv/bin/pip $(SOURCES)
	.venv/bin/pip install --quiet --constraint constraints.txt --only-binary=giotto-tda --editable ".[$(EXTRAS)]"
	@touch $@

.venv/.development: .venv/.runtime
	.venv/bin/pip install --quiet --constraint constraints.txt --group dev
	@touch $@

.venv-modern/.development: $(SOURCES)
	$(PYTHON) -m venv .venv-modern
	.venv-modern/bin/pip install --quiet "pip==$(PIP_VERSION)"
	.venv-modern/bin/pip install --quiet --constraint constraints-modern.txt --editable ".[$(MODERN_EXTRAS)]" --group dev
	@touch $@

install: .venv/.development  ## Make the virtual environment with everything for development.

demo: .venv/.runtime  ## Train, record, analyse, replay, predict; say where the report is. More options: make demo ARGS="--quick"
	.venv/bin/dynome demo $(ARGS)

test: .venv/.development  ## The test suite, at most ten minutes.
	$(PYTEST_ENVIRONMENT) .venv/bin/pytest $(SIDE_BY_SIDE) -m "not full" $(ARGS)

test-full: .venv/.development coverage  ## The suite, the kill and fuzz campaigns, and the suite again without numba's JIT.
	$(PYTEST_ENVIRONMENT) .venv/bin/pytest $(ARGS)

test-modern: .venv-modern/.development  ## The suite with the newest numpy and scikit-learn, without giotto-tda.
	$(PYTEST_ENVIRONMENT) .venv-modern/bin/pytest $(SIDE_BY_SIDE) -m "not full" $(ARGS)

coverage: .venv/.development  ## The suite, and that of the kernels without numba's JIT, so that they count; at least 90 % of each package.
	@rm -f .coverage .coverage.*
	@$(MAKE) --no-print-directory test ARGS="--cov --cov-report= $(ARGS)"
	$(PYTEST_ENVIRONMENT) NUMBA_DISABLE_JIT=1 .venv/bin/pytest $(SIDE_BY_SIDE) -m "not full" --cov --cov-append --cov-report= tests/analysis
	.venv/bin/coverage report --include='recorder/*' --fail-under=90
	.venv/bin/coverage report --include='analysis/*' --fail-under=90

lint: .venv/.development  ## Style, types, spelling, packaging metadata.
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/codespell
	.venv/bin/validate-pyproject pyproject.toml

format: .venv/.development  ## Let ruff put the code in order.
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

.venv/.benchmark: .venv/.development
	.venv/bin/pip install --quiet --constraint constraints.txt --only-binary=:all: --group benchmark
	@touch $@

benchmark: .venv/.benchmark  ## Time the hot paths against named peers; writes tests/benchmarks/RESULTS.md. One table: make benchmark ARGS=births
	PYTHONPATH=tests .venv/bin/python -m benchmarks $(ARGS)

# The header of each file stays; a local version such as +cpu names one machine's build and goes.
define resolve
	rm -rf .venv-resolve && $(PYTHON) -m venv .venv-resolve
	.venv-resolve/bin/pip install --quiet "pip==$(PIP_VERSION)"
	.venv-resolve/bin/pip install --quiet --only-binary=giotto-tda torch==$(TORCH_VERSION) --editable ".[$(2)]" --group dev
	grep '^#' $(1) > $(1).new
	.venv-resolve/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^pip==' >> $(1).new
	mv $(1).new $(1) && rm -rf .venv-resolve
endef

constraints:  ## Resolve both tested sets anew.
	$(call resolve,constraints.txt,$(EXTRAS))
	$(call resolve,constraints-modern.txt,$(MODERN_EXTRAS))

clean:  ## Remove the environments and every cache.
	rm -rf .venv .venv-modern .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
