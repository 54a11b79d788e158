# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
MODELS ?= tiny
# Three at a time, who wait for servers now and then: each has its own. `make test PYTEST_ARGS='tests/hub -x'` runs a part.
# In the order of the folders: else files of few tests would come last, which are those that wait the longest.
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder
# Tests that run side by side would wait for each other's threads, spinning.
ALONE := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint cut format types catalog references openapi docs up chaos bench bench-mergekit eval bench-overlap load quality quality-llm quality-search clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## a virtual environment with the pinned dependencies

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Mergery needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(READY)  ## a real merge of real models through the real service (MODELS=tiny or smollm2)
	@$(BIN)/python -m demo.run --models $(MODELS)

test: $(READY)  ## every check and every test
	@sh tests/install_chromium.sh
	$(MAKE) --no-print-directory -j 2 lint cut  # each keeps one core busy
	$(ALONE) $(BIN)/python -m pytest $(PYTEST_ARGS)

check: lint test  ## the same, under the name other projects use

lint: $(READY)  ## ruff, import rules, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

cut: $(READY)  ## a minute of quality: a few merges must score as sound ones do
	$(BIN)/python -m quality cut

format: $(READY)  ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

catalog: $(READY)  ## write the catalogue of methods anew
	$(BIN)/python -m merge catalog

references: $(READY)  ## write the digests of every method's reference output anew
	$(BIN)/python -m tests.merge.references

openapi: $(READY)  ## write docs/openapi.json anew
	$(BIN)/python -m api.openapi

docs: $(READY)  ## write the pages that are made from code anew
	$(BIN)/python docs/generate.py

up: $(READY)  ## start the whole service here, for keeps
	$(BIN)/mergery up

chaos: $(READY)  ## the long crash test: 20 jobs, every process killed at random
	$(BIN)/python -m tests.acceptance.chaos --jobs 20

bench: $(READY)  ## speed and memory of every method, against copying the same bytes
	$(BIN)/python -m bench.engine

bench-mergekit: bench/.mergekit/bin/mergekit-yaml  ## mergekit in an environment of its own, to compare with

bench/.mergekit/bin/mergekit-yaml:
	$(PYTHON) -m venv bench/.mergekit
	PIP_DISABLE_PIP_VERSION_CHECK=1 bench/.mergekit/bin/python -m pip install --quiet torch==2.13.0 mergekit==0.1.5

eval: bench/.eval/bin/lm-eval  ## lm-evaluation-harness in an environment of its own, beside our own scorers
	bench/.eval/bin/python -m tests.scoring.harness.real
	bench/.eval/bin/python -m tests.scoring.harness.real_search

bench/.eval/bin/lm-eval:
	$(PYTHON) -m venv bench/.eval
	PIP_DISABLE_PIP_VERSION_CHECK=1 bench/.eval/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0 -e '.[eval]'

bench-overlap: $(READY)  ## a whole job over a slow line, beside its slowest stage
	$(BIN)/python -m bench.overlap

quality: $(READY)  ## how good every method is on five benches (hours of one core, kept), and its page
	$(BIN)/python -m quality methods

quality-llm: $(READY)  ## what AIM does on a tiny and a real language model (kept), and its page
	$(BIN)/python -m quality aim

quality-search: $(READY)  ## what every search method gains on held-out items, and at what cost (kept), and its page
	$(BIN)/python -m quality search

load: $(READY)  ## 200 concurrent clients, thinking a second each, against an API of its own
	$(BIN)/python -m bench.load

clean:  ## remove what the demo and the tests left
	rm -rf .mergery .pytest_cache .mypy_cache .ruff_cache .hypothesis
