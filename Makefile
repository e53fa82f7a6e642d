# The verbs of llamero's checkout. `make help` lists them; each sets up what it needs (see scripts/setup.sh).
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
WORKDIR ?= runs
export PYTHON

.PHONY: help
help: ## List the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing: the pinned Python packages (cached outside the checkout) and the .venv that points to them
	@scripts/setup.sh python

.PHONY: demo
demo: setup ## Take the quickstart from raw data to a chat page (ARGS=--no-serve ends by itself; ARGS passes any option of `llamero run`)
	@exec $(BIN)/llamero run examples/quickstart.yaml --workdir $(WORKDIR) $(ARGS)

.PHONY: test
test: ## Set up everything and run the tests (ARGS passes options to pytest)
	@scripts/setup.sh python browser cluster
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-long
test-long: ## Set up everything and run the tests that `make test` leaves out: longer versions of what it shows in part
	@scripts/setup.sh python browser cluster
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m long $(ARGS)

.PHONY: chaos
chaos: ## Kill, cut off, fill and tear everything that a job stands on, and print a table of what came of it (ARGS=--quick for a short one)
	@scripts/setup.sh python cluster
	@$(BIN)/python tests/chaos/run.py $(ARGS)

.PHONY: check
check: setup ## Format, lint, types, import contracts, generated files up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=operator:services $(BIN)/lint-imports
	$(BIN)/python scripts/generate.py --check

.PHONY: format
format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: generate
generate: setup ## Write the generated files anew: the manifest's schema and its reference
	$(BIN)/python scripts/generate.py

.PHONY: base
base: setup ## Pretrain the tiny base model anew (minutes; it is checked in)
	$(BIN)/python examples/tiny-base/pretrain.py --output examples/tiny-base

.PHONY: real
real: setup ## Run the manifests under benchmarks/real on the real data sets in LLAMERO_DATA
	@for manifest in benchmarks/real/*.yaml; do $(BIN)/llamero run $$manifest --no-serve --workdir $(WORKDIR)/real $(ARGS) || exit; done

.PHONY: bench
bench: setup ## Training speed against padded Trainer, TRL and LLaMA-Factory, as ratios (ARGS=--quick for a short one)
	@$(BIN)/python benchmarks/training/run.py $(ARGS)

.PHONY: bench-operator
bench-operator: setup ## The operator with 10, 100 and 1,000 jobs beside a bare client, on a real control plane (ARGS=--quick for a short one)
	@scripts/setup.sh cluster
	@$(BIN)/python benchmarks/operator/run.py $(ARGS)

.PHONY: bench-data
bench-data: setup ## The data steps beside BeautifulSoup, datatrove, Data-Juicer, rensa and rouge_score (ARGS=--quick for a short one)
	@$(BIN)/python benchmarks/data/run.py $(ARGS)

.PHONY: bench-rollout
bench-rollout: setup ## Rollouts on a real control plane while clients stream: failed requests, wrong answers, seconds to roll back (ARGS=--quick for a short one)
	@scripts/setup.sh cluster
	@$(BIN)/python benchmarks/rollout/run.py $(ARGS)

.PHONY: bench-engine
bench-engine: setup ## The CPU engine with 1, 4 and 16 chats over 1 and 8 adapters beside generate() (ARGS=--quick for a short one)
	@$(BIN)/python benchmarks/engine/run.py $(ARGS)

.PHONY: images
images: setup ## Build the container images with buildah (ARGS passes options and names; see images/build.py --help)
	@scripts/setup.sh images
	@$(PYTHON) images/build.py $(ARGS)
