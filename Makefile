# Run `make help` for the list. Every target sets up what it needs; that is quick when nothing is missing.
SHELL := /bin/bash
PY := .venv/bin/python

.PHONY: help setup lint test docs worlds fuzz faults soak bench cluster deploy-test demo standalone deb dist matrix lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

setup: ## Debian packages that are missing (as root), and .venv with the locked Python packages
	@scripts/setup test

lint: setup ## style, format and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	MYPYPATH=examples:typings .venv/bin/mypy -p demo

test: setup ## all tests (as root: they use network namespaces of their own)
	$(PY) -m pytest -m "not bench" -n auto --dist loadfile

docs: setup ## the documentation as a site, in build/site; warnings are errors
	@scripts/docs

MINUTES ?= 10
worlds: setup ## generated nodes on the real kernel for MINUTES=10 minutes; prints what broke a law (as root)
	$(PY) tests/worlds/run.py --minutes $(MINUTES)

fuzz: setup ## inputs of others, with coverage guidance, for MINUTES=10 minutes; prints what broke a target
	$(PY) tests/fuzz/fuzzing.py --minutes $(MINUTES)

SETTING ?=
JOBS ?= $(shell nproc)
faults: setup ## every call struck once, every kill, flip and loss of power (as root); hours; SETTING= for the calls of one
	$(PY) tests/faults/every_strike.py --jobs $(JOBS) $(if $(SETTING),--setting "$(SETTING)")
ifeq ($(SETTING),)
	CNIMETA_EVERY=1 CNIMETA_FLIPS=1000 $(PY) -m pytest -s -m crash --timeout 14400 --ignore tests/faults/test_faults.py
endif

STEPS ?=
soak: setup ## anything in any order on the real kernel for MINUTES=10 minutes, beside a model (as root)
	$(PY) tests/soak/run.py --minutes $(MINUTES) --steps "$(STEPS)"

bench: setup ## measurements against the reference plugins; writes docs/benchmarks.md; QUICK=1: to see that they work
	$(PY) bench/benchmarks.py

cluster: ## Pods on a real kubelet, containerd and API server, which are compiled the first time (as root)
	@scripts/setup cluster
	KUBERNETES=$${KUBERNETES:-$$(scripts/kubernetes)} && export KUBERNETES && \
	  $(PY) -m pytest --timeout 400 tests/cluster/scenarios.py

deploy-test: setup ## upgrades, kills, the package in a root file system without Python, at length (as root)
	CNIMETA_EVERY=1 CNIMETA_STARTS=5000 CNIMETA_CONTAINERS=50 $(PY) -m pytest -s --timeout 7200 \
	  tests/deploy tests/deploy/scenarios.py tests/hostport_alloc/test_upgrade.py

standalone: setup ## a folder for nodes without Python, and its archive, into dist/
	$(PY) scripts/standalone.py dist

deb: standalone ## the same as a Debian package
	$(PY) scripts/deb.py dist/cnimeta-$$($(PY) -c 'import cnimeta; print(cnimeta.__version__)') dist

dist: setup ## sdist, wheels (pure and of this platform) and the list of what is in them, into dist/
	$(PY) scripts/dist.py dist

matrix: setup ## the tests that need no root, on every Python and dependency that can be had (noxfile.py)
	.venv/bin/python -m venv .nox/tool && .nox/tool/bin/pip -q install nox && .nox/tool/bin/nox

demo: ## two containers, random host ports, real traffic; under a minute (as root)
	@scripts/setup demo
	@PYTHONPATH=examples $(PY) -m demo

lock: setup ## renew requirements-*.lock from pyproject.toml
	@scripts/lock

clean: ## remove what setup and the tests wrote
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
