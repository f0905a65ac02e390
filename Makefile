# Every target sets up .venv by itself: nothing but Python >= 3.11 and make has to be there.
PYTHON ?= python3
JOBS ?= 3
# The slow tests have time limits on waiting, which more processes on two cores would exceed.
SLOW_JOBS ?= 2
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FRESH := .venv-constraints
INSTALL := python -m pip install --quiet --disable-pip-version-check
RESULTS := results
QUICK := tests/test_*.py $(addprefix tests/,data losses replay policies/test_build.py rollout/test_sampler.py trainers/test_trainer.py)
PEERS := .venv-peers

.DEFAULT_GOAL := help
.PHONY: help venv constraints train test test-slow test-quick test-latest test-learning lint format typecheck notebooks check bench bench-peers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## set up .venv

# The stamp is newer than both as long as what is installed is what they ask for.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jaxrl needs Python >= 3.11, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) $(addprefix --constraint ,$(CONSTRAINTS)) --upgrade pip
	$(BIN)/$(INSTALL) $(addprefix --constraint ,$(CONSTRAINTS)) $(addprefix --build-constraint ,$(CONSTRAINTS)) --editable '.[dev]'
	@touch $@

constraints: ## renew constraints.txt: the newest versions that pyproject.toml allows, as PYTHON takes them
	rm -rf $(FRESH)
	$(PYTHON) -m venv $(FRESH)
	$(FRESH)/bin/$(INSTALL) --upgrade pip
	# With what the build needs: hatchling, and for an editable install editables.
	$(FRESH)/bin/$(INSTALL) '.[dev]' hatchling editables
	$(FRESH)/bin/python -m pip freeze --all --exclude jaxrl --exclude setuptools | LC_ALL=C sort --ignore-case >$(FRESH)/constraints.txt
	mv $(FRESH)/constraints.txt constraints.txt
	rm -rf $(FRESH)

train: $(STAMP) ## train PPO on CartPole-v1 until it is solved, with a checkpoint and a learning curve
	$(BIN)/jaxrl train -f tuned_examples/ppo/cartpole-ppo.yaml --checkpoint-at-end --storage-path $(RESULTS)
	$(BIN)/jaxrl plot $(RESULTS) --out $(RESULTS)/cartpole-ppo.png

test: $(STAMP) ## run the tests, except those that take long
	$(BIN)/python -m pytest -q -m "not learning and not slow" -n $(JOBS) --dist loadfile --durations 20

test-slow: $(STAMP) ## run those that take long: what dies, hangs and comes back, Tune, the README's blocks
	$(BIN)/python -m pytest -q -m "slow and not learning" -n $(SLOW_JOBS) --dist loadfile --durations 20

test-quick: $(STAMP) ## run those that take a moment: the parts, and one trainer
	$(BIN)/python -m pytest -q -m "not learning and not ray and not slow" -n $(JOBS) --dist loadfile --durations 20 $(QUICK)

test-latest: ## run the tests with the newest of everything that pyproject.toml allows, and as JAX compiles by default
	rm -rf .venv-latest
	XLA_FLAGS= $(MAKE) test test-slow VENV=.venv-latest CONSTRAINTS=

test-learning: $(STAMP) ## run the learning runs too: each algorithm to its threshold
	XLA_FLAGS= $(BIN)/python -m pytest -q -m learning --timeout 3600

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP) ## check types
	$(BIN)/pyright

notebooks: $(STAMP) ## run every notebook from top to bottom
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout 1200 --timeout 1500 -n $(JOBS) notebooks

check: lint typecheck test test-slow notebooks ## all of it

bench: $(STAMP) ## measure speed (see benchmarks/README.md)
	$(BIN)/python benchmarks/run.py

# torch first and alone: a CPU build of it serves, and must not be replaced while the others are resolved.
bench-peers: $(PEERS)/.installed ## set up .venv-peers, the libraries that bench compares with

$(PEERS)/.installed: benchmarks/requirements-peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/$(INSTALL) $$(grep '^torch==' $<)
	$(PEERS)/bin/$(INSTALL) --requirement $<
	# Its one script that is used runs here too, though the package asks for Python < 3.11 and old libraries.
	$(PEERS)/bin/$(INSTALL) --no-deps --ignore-requires-python cleanrl==1.2.0
	# rejax wants gymnax before 1.0, and distrax the stable tensorflow-probability, where only the nightly build works.
	$(PEERS)/bin/$(INSTALL) --no-deps rejax==0.1.3 gymnax==0.0.9 distrax==0.1.9
	@touch $@

clean: ## remove everything that was made, .venv included
	rm -rf $(VENV) .venv-latest $(FRESH) $(PEERS) $(RESULTS) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
