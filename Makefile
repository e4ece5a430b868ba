# make demo: the whole pipeline on this machine. make test: everything that is checked. CONTRIBUTING.md has the rest.
SHELL := /bin/sh
WORK := .work
VENV := $(WORK)/venv
DEV := $(WORK)/dev
PYTHON ?= python3

HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
# Where the host's files are kept; empty is .work/host.
TRTLLM_HOME ?=
export TRTLLM_HOME
QUESTION ?= What is machine learning?
# Further arguments of ansible-playbook, such as --check --diff.
ARGS ?=

PLAYBOOK = $(VENV)/bin/python -m ansible playbook -i inventory/local \
	-e triton_serve_http_port=$(HTTP_PORT) -e triton_serve_grpc_port=$(GRPC_PORT) \
	-e triton_serve_metrics_port=$(METRICS_PORT)

.PHONY: demo ask check down clean

demo:
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/demo.txt --home "$${TRTLLM_HOME:-$(WORK)/host}" \
		--port $(HTTP_PORT) --port $(GRPC_PORT) --port $(METRICS_PORT)
	@$(PLAYBOOK) $(ARGS) site.yml
	@$(PYTHON) scripts/ask.py --paragraph --port $(HTTP_PORT) "$(QUESTION)"

# Ask the served model: make ask QUESTION="..."
ask:
	@$(PYTHON) scripts/ask.py --port $(HTTP_PORT) "$(QUESTION)"

# What make demo would change, and nothing is changed.
check:
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/demo.txt
	@$(PLAYBOOK) $(ARGS) --check --diff site.yml

down:
	@if [ -x $(VENV)/bin/python ]; then $(PLAYBOOK) $(ARGS) playbooks/teardown.yml; fi

clean: down
	@rm -rf $(WORK)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The collection's own figures, in one run; docs/benchmarks.md keeps some.
.PHONY: bench
bench:
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/demo.txt
	@$(DEVELOPMENT)
	@$(VENV)/bin/python benchmarks/bench.py --work $(WORK)/bench --python $(DEV)/bin/python $(ARGS)

# make test: everything; make test STAGES="unit demo": only these. lint, unit, sanity and molecule are stages too.
# Where Docker's stages cannot run they fail; make test ALLOW_SKIP=1 skips them.
# make fleet: the whole scenario of a fleet, six hosts under load and every fault, which make test has a short form of.
STAGES ?=
ALLOW_SKIP ?=
export ALLOW_SKIP
DEVELOPMENT = $(PYTHON) scripts/bootstrap.py --venv $(DEV) --requirements requirements/dev.txt
.PHONY: test lint unit sanity molecule fleet docs requirements
test:
	@$(DEVELOPMENT)
	@$(DEV)/bin/python scripts/test.py $(STAGES)

lint unit sanity molecule:
	@$(DEVELOPMENT)
	@$(DEV)/bin/python scripts/test.py $@

fleet:
	@$(DEVELOPMENT)
	@$(DEV)/bin/python scripts/test.py fleet-full

# roles/*/README.md from each role's argument_specs.
docs:
	@$(DEVELOPMENT)
	@$(DEV)/bin/python scripts/role_readme.py

# The pins, from the *.in files beside them.
LOCK := $(WORK)/lock
UV_COMPILE = $(LOCK)/bin/uv pip compile --quiet --upgrade --generate-hashes --no-header --no-annotate
requirements:
	@$(PYTHON) scripts/bootstrap.py --venv $(LOCK) --requirements requirements/lock.txt
	@for name in lock demo dev core-2.16; do \
		$(UV_COMPILE) --python-version 3.11 requirements/$$name.in --output-file requirements/$$name.txt || exit 1; done
	@$(UV_COMPILE) --python-version 3.12 requirements/core-2.21.in --output-file requirements/core-2.21.txt
	@$(UV_COMPILE) --universal --python-version 3.9 --no-emit-package numpy --no-emit-package python-rapidjson --no-emit-package ml-dtypes \
		requirements/host.in --output-file roles/tensorrtllm_backend_build/files/host/requirements.txt
