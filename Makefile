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

# Python's caches stay out of the checkout.
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(WORK)/pycache

PLAYBOOK = $(VENV)/bin/python -m ansible playbook -i inventory/local \
	-e triton_serve_http_port=$(HTTP_PORT) -e triton_serve_grpc_port=$(GRPC_PORT) \
	-e triton_serve_metrics_port=$(METRICS_PORT)

.PHONY: demo ask check down clean

demo:
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/demo.txt --home "$${TRTLLM_HOME:-$(WORK)/host}" \
		--port $(HTTP_PORT) --port $(GRPC_PORT) --port $(METRICS_PORT)
	@$(PLAYBOOK) $(ARGS) site.yml
	@$(PYTHON) scripts/ask.py --port $(HTTP_PORT) "$(QUESTION)"

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

# The collection's own figures, in one run; docs/benchmarks.md keeps some.
.PHONY: bench
bench:
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/demo.txt
	@$(VENV)/bin/python benchmarks/bench.py --work $(WORK)/bench $(ARGS)
