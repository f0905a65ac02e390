# Every target sets up .venv by itself: nothing but Python >= 3.11 and make has to be there.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS := results
PEERS := .venv-peers

.DEFAULT_GOAL := help
.PHONY: help venv train test test-learning lint format typecheck notebooks check bench bench-peers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## set up .venv

# The stamp is newer than pyproject.toml as long as what is installed is what it asks for.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jaxrl needs Python >= 3.11, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

train: $(STAMP) ## train PPO on CartPole-v1 until it is solved, with a checkpoint and a learning curve
	$(BIN)/jaxrl train -f tuned_examples/ppo/cartpole-ppo.yaml --checkpoint-at-end --storage-path $(RESULTS)
	$(BIN)/jaxrl plot $(RESULTS) --out $(RESULTS)/cartpole-ppo.png

test: $(STAMP) ## run the tests (learning runs excepted)
	$(BIN)/python -m pytest -q -m "not learning" -n $(JOBS) --dist loadfile

test-learning: $(STAMP) ## run the learning runs too: each algorithm to its threshold
	$(BIN)/python -m pytest -q -m learning --timeout 3600

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP) ## check types
	$(BIN)/pyright

notebooks: $(STAMP) ## run every notebook from top to bottom
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout 1200 --timeout 1500 notebooks

check: lint typecheck test notebooks ## all of it

bench: $(STAMP) ## measure speed (see benchmarks/README.md)
	$(BIN)/python benchmarks/run.py

# torch first and alone: a CPU build of it serves, and must not be replaced while the others are resolved.
bench-peers: $(PEERS)/.installed ## set up .venv-peers, the libraries that bench compares with

$(PEERS)/.installed: benchmarks/requirements-peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	# Its one script that is used runs here too, though the package asks for Python < 3.11 and old libraries.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python cleanrl==1.2.0
	# rejax wants gymnax before 1.0, and distrax the stable tensorflow-probability, where only the nightly build works.
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps rejax==0.1.3 gymnax==0.0.9 distrax==0.1.9
	@touch $@

clean: ## remove everything that was made, .venv included
	rm -rf $(VENV) $(PEERS) $(RESULTS) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
