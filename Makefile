# longstream: everything runs in a virtual environment of its own; `make demo` and `make test` set it up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A package index with CPU-only builds of torch makes the installation some 3 GB smaller; see README.
TORCH_INDEX ?=
MODEL ?= qwen2.5-coder-1.5b
STREAMS ?= 3
SEGMENTS ?=
TRANSLATE ?= fr
SPEED ?= max
PAGE ?= yes
BENCH ?= all
SEED ?= 1
KILLS ?= 20
DELIVERY ?= exactly_once

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full lint format bench eval fuzz kafka chaos docs package sbom audit newcomer clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo MODEL=smollm2-135m            a fast run of the plumbing (its words make no sense)"
	@echo "  make demo STREAMS=2 SEGMENTS=30 TRANSLATE=fr,de SPEED=20x"

setup: $(VENV)/.ready ## Create .venv and install longstream into it

$(VENV)/.ready: pyproject.toml constraints.txt operators/model/rows.c
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	    f"longstream needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}: call make PYTHON=python3.12 …")'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then echo "installing CPU-only torch …"; \
	    $(BIN)/python -m pip install -q -c constraints.txt --index-url "$(TORCH_INDEX)" torch; fi
	@echo "installing longstream and what it needs (a few minutes the first time) …"
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## Three real meetings through Kafka, Faust and the model, on this screen and on a page
	@$(BIN)/longstream demo --model "$(MODEL)" --streams "$(STREAMS)" \
	    $(if $(SEGMENTS),--segments "$(SEGMENTS)") --translate "$(TRANSLATE)" --speed "$(SPEED)" \
	    $(if $(PAGE),,--no-page)

test: setup lint ## Lint, types and the fast tests (with a real Kafka where one can run)
	@$(BIN)/pytest -m "not slow and not cuda" -n 4 --dist loadfile --no-loadscope-reorder --durations=10

test-full: setup lint ## All tests, the long ones too
	@$(BIN)/pytest

lint: setup ## ruff, mypy, bandit, and which package may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache | tail -3
	@$(BIN)/bandit -q -c pyproject.toml -r longstream operators pipelines

format: setup ## Format the code
	@$(BIN)/ruff format .

bench: setup ## Measure, BENCH=NAME for one of them (all of them take hours)
	@$(BIN)/longstream bench "$(BENCH)"

eval: setup ## Measure what the output is worth, on a small set: summaries and memory, then translations
	@$(BIN)/longstream eval facts --model "$(MODEL)" --meetings ES2006b --segments 90 --checkpoints 3 --sides ours,last_window,refine
	@$(BIN)/longstream eval translation --model "$(MODEL)" --pairs en-de --sentences 12

chaos: setup ## Kill workers and brokers, then check every record; KILLS=20 SEED=1 DELIVERY=exactly_once
	@$(BIN)/longstream chaos --kills "$(KILLS)" --seed "$(SEED)" --delivery "$(DELIVERY)"

fuzz: setup ## 100,000 hostile inputs, 10,000 of them through Kafka; SEED=1
	@$(BIN)/python -m tests.fuzz --seed "$(SEED)"

kafka: setup ## A Kafka broker on this machine until Ctrl-C
	@$(BIN)/longstream kafka

docs: setup ## Write the generated pages, then the site (site/), with every link checked
	@$(BIN)/python -m docs.generate
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

package: setup ## dist/: sdist and wheel
	@$(BIN)/python -m pip install -q -c constraints.txt build
	@$(BIN)/python -m build -o dist .

sbom: setup ## dist/longstream.cdx.json: every package with its version (CycloneDX)
	@$(BIN)/python -m pip install -q -c constraints.txt cyclonedx-bom
	@mkdir -p dist
	@$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml \
	    --mc-type application -o dist/longstream.cdx.json $(BIN)/python

audit: setup ## Known weaknesses of the pinned versions (pip-audit; asks a public database)
	@$(BIN)/python -m pip install -q -c constraints.txt pip-audit
	@$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

newcomer: ## Every command of quick start and README, as printed, in a clone and an environment of its own
	@$(PYTHON) tests/newcomer.py

clean: ## Remove the virtual environment and caches of this folder
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
