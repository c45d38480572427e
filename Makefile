# `make test` installs and tests, as README.md says; run it inside a virtual environment.
PYTHON ?= python

.PHONY: install test lint format docs sample

install:
	$(PYTHON) -m pip install --quiet --editable '.[dev]'

test: install
	$(PYTHON) -m pytest -n auto --dist loadfile

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# the site of the documents in site/, to be read without a server
docs:
	$(PYTHON) -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

sample:
	$(PYTHON) scripts/make_sample.py --overwrite
