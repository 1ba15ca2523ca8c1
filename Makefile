# SPDX-License-Identifier: Apache-2.0
# Stamp files make every setup step run once; a second `make setup` does nothing.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo dev check test soak bench types lock clean

PY := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHON

# Setup and tests also work in a checkout without the dashboard.
WEB := $(if $(wildcard web/package.json),web/node_modules/.built)
WEB_SOURCES := $(if $(WEB),$(shell find web -type f -not -path '*/node_modules/*' -not -path '*/dist/*'))

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.dev .venv/.browser $(WEB)  ## Install everything: .venv, the dashboard, Chromium (about 0.6 GB to download)
	@echo "Ready. \`make demo\` trains a model on two local spot machines." >&2

demo: .venv/.runtime $(WEB)  ## Train on two local spot machines, through the preemption of one; DEMO_FLAGS="--exit --json"
	@.venv/bin/shoestring demo $(DEMO_FLAGS)

dev: .venv/.runtime $(WEB)  ## Run the service from this checkout, data in .shoestring/; UP_FLAGS="--port 8000"
	@.venv/bin/shoestring up --data .shoestring $(UP_FLAGS)

check: .venv/.dev $(WEB)  ## Lint, types, import rules, migrations, OpenAPI, compose file, Dockerfiles
	@scripts/check

# Four processes even on two cores: half of the tests wait for other processes. Tests marked `alone` run last, by themselves.
TEST_PROCESSES ?= 4
test: .venv/.dev .venv/.browser $(WEB)  ## Every test; SQLite, PostgreSQL, Chromium; TEST_FLAGS="-k money"
	@if [ -n "$(WEB)" ]; then npm --prefix web test --silent; fi
	@$(PY) -m pytest -n $(TEST_PROCESSES) $(TEST_FLAGS)

soak: .venv/.dev .venv/.browser $(WEB)  ## Soak tests, resumable; SEEDS=20 DATA=folder ONLY=name
	@$(PY) -m bench.soak --seeds "$(or $(SEEDS),20)" --data "$(DATA)" $(ONLY)

bench: .venv/.dev .venv/.browser $(WEB)  ## Run benchmarks and append the results to bench/RESULTS.md; ONLY=name
	@$(PY) -m bench $(ONLY)

types: .venv/.runtime web/node_modules/.installed  ## Regenerate the OpenAPI document and the dashboard's types
	@PYTHONPATH=core:api scripts/types

lock: .venv/.dev  ## Regenerate requirements.lock from what is installed in .venv
	@scripts/lock

clean:  ## Remove what setup and runs left here (data folders given with --data stay)
	@rm -rf .venv web/node_modules api/shoestring_api/static .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache .soak */*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.runtime: requirements.lock $(wildcard */pyproject.toml)
	@scripts/setup runtime
	@touch $@

.venv/.dev: .venv/.runtime pyproject.toml
	@scripts/setup dev
	@touch $@

.venv/.browser: .venv/.dev
	@scripts/setup chromium
	@touch $@

web/node_modules/.installed: web/package-lock.json | .venv/.runtime
	@scripts/setup web_packages
	@touch $@

web/node_modules/.built: web/node_modules/.installed $(WEB_SOURCES)
	@scripts/setup web_build
	@touch $@
