# Every target can be run again at any time. `make setup` needs root on Debian 12; the others need what it installed.
.DEFAULT_GOAL := help
.PHONY: help setup services check format test demo bench soak serve clean

python := .venv/bin/python

# Half of a test's time is waiting, for guests above all: three at once keep two cores busy. A file's tests stay together,
# as they share machines; long files come first, as they are collected (contract, faults, integration, unit). A process
# that dies (of no memory) ends the run: what it had to do yet would be waited for, and nobody would do it.
beside := --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

help:
	@echo 'make setup    install Debian packages and the virtual environment (.venv)'
	@echo 'make demo     protect, lose and recover a real virtual machine, in under three minutes'
	@echo 'make test     linters, types, layers and all tests'
	@echo 'make bench    benchmarks, beside other tools'
	@echo 'make soak     random operations and kills, for as long as you let it'
	@echo 'make serve    scheduler, workers and console; keeps recovered machines alive (strongroom serve)'
	@echo 'make format   format the sources as make test wants them'
	@echo 'make clean    remove everything that was built here'

setup:
	@.ci/setup

services: setup
	@.ci/services

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Containers often forbid Python to keep what it compiled: then each of a thousand processes compiles the project anew.
# And their first process may let the dead wait for seconds: who becomes an orphan in a test is adopted by tini.
test: export PYTHONDONTWRITEBYTECODE =
test: services check
	@.ci/setup --test
	tini -s -- $(python) -m pytest $(beside)

demo: services
	$(python) -m tests.demo

bench: services
	@.ci/setup --bench
	$(python) -m tests.bench

soak: services
	$(python) -m tests.soak

serve: services
	.venv/bin/strongroom serve

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find imaging appliance web tests images -type d -name __pycache__ -prune -exec rm -rf {} +
