# Everything a developer needs. Only Python >= 3.11 and make have to be there: the rest is set up on first use.

VENV := .venv
BIN := $(VENV)/bin
BITS := .venv-bits
CONSTRAINTS := constraints.txt
DEMO_OUTPUT ?= demo-output
SESSION := build/session
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Where it is set, each of the many processes that demo and tests start compiles what it imports anew: 8 s instead of 3.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-bits check static audit docs bench session clean

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## scan a simulated sample sparsely, reconstruct it live, query it, draw it (demo-output/)
	$(BIN)/ptychonn demo --out $(DEMO_OUTPUT)

test: static ## lint, types, layers, then the tests but for the slow ones
	$(PYTEST) -m 'not slow'

test-slow: $(VENV)/.ready ## the slow tests: faults, kills and users in whole processes
	$(PYTEST) -m slow tests

test-bits: $(BITS)/.ready ## the tests that concern databroker, beside BITS, which wants databroker 1.2.5
	$(BITS)/bin/python -m pytest -q tests/catalog/results/test_databroker.py

check: static audit ## lint, formatting, types, layer contracts, and known vulnerabilities of what is installed

# Tests do not hang on what was published of other packages yesterday: the audit is in check alone.
static: $(VENV)/.ready ## lint, formatting, types, layer contracts: what test begins with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/.audit ## look the installed packages up among known vulnerabilities (needs the network; says so without)
	$(BIN)/python .ci/audit.py

docs: $(VENV)/.docs ## build the documentation (docs/_build/html), warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(VENV)/.peer ## run the benchmarks and rewrite benchmarks/results
	$(BIN)/python -m benchmarks.star
	$(BIN)/python -m benchmarks.star_halves
	$(BIN)/python -m benchmarks.any_probe
	$(BIN)/python -m benchmarks.trust
	$(BIN)/python -m benchmarks.callback_cost
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.learning
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.soak

session: $(VENV)/.ready ## open IPython on the simulated beamline with profile_startup/
	@mkdir -p $(SESSION)/profile_default
	@ln -sfn $(CURDIR)/profile_startup $(SESSION)/profile_default/startup
	PTYCHONN_CONFIG=profile_startup/ptychonn.toml $(BIN)/ipython --ipython-dir=$(SESSION)

clean: ## remove what demo, tests, docs and sessions left; .venv and .venv-bits stay
	rm -rf $(DEMO_OUTPUT) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

# uv installs in a quarter of pip's time and is told what pip was told about where packages are; where it cannot, pip does it.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
UV_INSTALL = env $${PIP_FIND_LINKS:+UV_FIND_LINKS="$$PIP_FIND_LINKS"} $${PIP_INDEX_URL:+UV_DEFAULT_INDEX="$$PIP_INDEX_URL"} \
    $${PIP_CERT:+SSL_CERT_FILE="$$PIP_CERT"} $(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS)
define install
	@$(INSTALL) uv && $(UV_INSTALL) -e $(1) || { echo "uv could not; installing with pip"; $(INSTALL) -e $(1); }
endef
define find_python
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: no Python >= 3.11 found (looked for python3, python3.13, python3.12, python3.11)."; \
	    echo "      Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; \
	fi; \
	[ -x $(1)/bin/python ] || $$found -m venv $(1) || { \
	    echo "make: $$found cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "setting up $(1) (once) ..."
endef

# Set-up, redone only when what is installed changes.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(call find_python,$(VENV))
	$(call install,'.[test]')
	@touch $@

# Beside BITS: what the tests pass with, but for the databroker that it wants.
$(BITS)/.ready: BIN := $(BITS)/bin
$(BITS)/.ready: CONSTRAINTS := $(BITS)/constraints.txt
$(BITS)/.ready: pyproject.toml constraints.txt
	$(call find_python,$(BITS))
	@grep -v '^databroker==' constraints.txt > $(BITS)/constraints.txt
	$(call install,. apsbits pytest pytest-timeout hypothesis)
	@touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(call install,'.[docs]')
	@touch $@

$(VENV)/.audit: $(VENV)/.ready
	@$(INSTALL) 'pip-audit>=2.7'
	@touch $@

# pty-chi without torchvision, which would bring another torch; see benchmarks/README.md.
$(VENV)/.peer: $(VENV)/.ready
	@$(INSTALL) --no-deps ptychi==2.2.0 && $(INSTALL) scikit-learn tqdm
	@touch $@
