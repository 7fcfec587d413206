# `make help` lists the targets. Needs Python 3.10 to 3.14 and make; the tests of torch.compile a
# C++ compiler and Python's headers.
SHELL := /bin/sh
STACK ?= lite
STACKS := lite full onedl
ifneq ($(words $(STACK)) $(filter $(STACK),$(STACKS)),1 $(STACK))
$(error STACK=$(STACK): must be one of $(STACKS))
endif
# Each stack has an environment of its own, since all three have the same import names.
VENV := .venv$(if $(filter-out lite,$(STACK)),-$(STACK))
BIN := $(VENV)/bin
# Written last: an environment without it was interrupted and is made anew.
STAMP := $(VENV)/.complete
# The site needs neither torch nor mmseg; what works without mmseg is tested without it.
DOCS_VENV := .venv-docs
PLAIN_VENV := .venv-plain
PINS := $(patsubst %,requirements/%.txt,common numba tests torch triton uv $(STACK)) setup.py pyproject.toml tools/install_torch.sh
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A worker for each core, one thread each; a file stays on one worker, since its tests share what is slow to make.
PARALLEL := -n auto --dist loadfile
# pytest would compile every test anew in every run.
unexport PYTHONDONTWRITEBYTECODE
export TORCH_INDEX_URL

# The machine's own python3 where it will do, else the newest there is.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	if $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then \
	echo $$p; break; fi; done)

.PHONY: help install demo test test-plain coverage test-slow fuzz faults soak bench gpu-check docs lint format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'
	@echo
	@echo 'STACK=lite|full|onedl  the OpenMMLab stack, for every target (default: lite; docs/install.md)'
	@echo 'TORCH_INDEX_URL=...  package index to take torch from (default: CPU build unless nvidia-smi finds a GPU)'
	@echo 'PYTHON=...           interpreter for the environment (default: $(PYTHON))'

install: $(STAMP)  ## make .venv (or .venv-STACK) with everything pinned in requirements/

demo: $(STAMP)  ## train on generated scenes with the built-in loss and with ours, draw work_dirs/demo/report.png
	$(BIN)/python tools/demo.py

test: $(STAMP)  ## run the tests, side by side; with ARGS in one process, which starts sooner
	$(if $(ARGS),,OMP_NUM_THREADS=1) $(BIN)/python -m pytest -m 'not slow' $(or $(ARGS),$(PARALLEL))

test-plain: $(PLAIN_VENV)/.complete  ## run what works without mmseg: functional, recipes, kernels with the newest Triton
	$(PLAIN_VENV)/bin/python -m pytest -m 'not slow' tests/test_functional.py tests/test_functional_sigmoid.py \
		tests/test_both_losses.py tests/test_recipes.py \
		tests/kernels/test_triton.py tests/kernels/test_triton_machine_code.py $(ARGS)

coverage: $(STAMP)  ## run the tests and report which lines of mmseg_wce/ they reach; fails below 95 %
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -m 'not slow' $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-slow: $(STAMP)  ## run the tests that take minutes or many gigabytes
	$(BIN)/python -m pytest -m slow $(ARGS)

fuzz: $(STAMP)  ## run the property-based tests on new random examples for MINUTES=10, until one fails
	@end=$$(($$(date +%s) + 60 * $(or $(MINUTES),10))); \
	while [ "$$(date +%s)" -lt "$$end" ]; do \
		MMSEG_WCE_FUZZ=3 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x -m hypothesis -n auto \
			--hypothesis-profile=default $(ARGS) || exit 1; \
	done

faults: $(STAMP)  ## break short trainings in every way that long ones meet, resume, compare; some ten minutes
	$(BIN)/python tools/faults.py $(ARGS)

soak: $(STAMP)  ## train for 2,000 iterations and report whether memory stays flat
	$(BIN)/python tools/soak.py $(ARGS)

bench: $(STAMP)  ## time and memory of loss steps and predictions against the built-in ones; some 20 minutes
	$(BIN)/python tools/benchmark.py $(ARGS)

gpu-check: $(STAMP)  ## check the loss on a GPU within nine minutes: correctness, CUDA graphs, tests, benchmark
	$(BIN)/python tools/gpu_check.py $(ARGS)

docs: $(DOCS_VENV)/.complete  ## build the documentation site: site/index.html, which needs no server
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

lint: $(STAMP)  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## repair what lint can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove every .venv, site, data/demo_scenes and work_dirs/demo
	rm -rf .venv $(STACKS:%=.venv-%) $(DOCS_VENV) $(PLAIN_VENV) site data/demo_scenes work_dirs/demo

# A new environment in the folder of the target, unless there is a complete one.
define new_environment
@test -n "$(PYTHON)" || { echo 'error: no Python 3.10 to 3.14 found; set PYTHON=/path/to/python3' >&2; exit 1; }
@test -e $@ || rm -rf $(@D)
@test -e $@ || $(PYTHON) -m venv $(@D) || { rm -rf $(@D); \
	echo 'error: $(PYTHON) cannot make an environment; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
endef

$(DOCS_VENV)/.complete: requirements/docs.txt
	$(new_environment)
	$(DOCS_VENV)/bin/python -m pip install --no-deps -r requirements/docs.txt
	@touch $@

$(PLAIN_VENV)/.complete: $(patsubst %,requirements/%.txt,plain numba torch triton-newest uv) setup.py tools/install_torch.sh
	$(new_environment)
	tools/install_torch.sh $(PLAIN_VENV)/bin/python triton-newest.txt
	$(PLAIN_VENV)/bin/python -m pip install --no-deps -r requirements/numba.txt -r requirements/plain.txt
	$(PLAIN_VENV)/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

$(STAMP): $(PINS)
	$(new_environment)
	tools/install_torch.sh $(BIN)/python
	$(BIN)/python -m pip install --no-deps $(foreach f,common numba tests,-r requirements/$f.txt)
	$(BIN)/python -m pip install --no-deps $(if $(filter full,$(STACK)),--no-build-isolation) -r requirements/$(STACK).txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
