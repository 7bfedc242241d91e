# `make help` lists the targets. PYTHON names the interpreter that builds .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# -qq still shows errors.
PIP := $(PY) -m pip -qq --disable-pip-version-check
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DIST_STAMP := $(VENV)/.installed-release
LOG := complete_journey

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check fix docs dist

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(STAMP) ## a year of purchases: prepare, train, compare, recommend
	$(PY) recipes/prepare.py recipes/$(LOG)/prepare.yaml
	$(PY) recipes/finetune.py recipes/$(LOG)/demo.yaml
	$(PY) recipes/evaluate.py recipes/$(LOG)/evaluate.yaml
	$(PY) recipes/recommend.py recipes/$(LOG)/recommend.yaml

test: $(STAMP) ## run the tests, without network
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist loadfile

check: $(STAMP) ## lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fix: $(STAMP) ## repair what ruff can repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(DOCS_STAMP) ## build the documentation into site/
	$(PY) -m mkdocs build --strict

dist: $(DIST_STAMP) ## build a release into dist/, check it, try it on every Python found
	$(PY) scripts/check_release.py

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no interpreter called '$(PYTHON)'; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "error: implicitrec needs Python 3.11 to 3.13, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(PY) || { echo "creating $(VENV)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing $(TORCH) and implicitrec (a few minutes the first time)"
	@$(PIP) install '$(TORCH)'
	@$(PIP) install -c constraints.txt -e '.[demo,dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

$(DIST_STAMP): $(STAMP)
	@$(PIP) install -c constraints.txt -e '.[release]'
	@touch $@
