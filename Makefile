# Two commands: `make demo` installs tagreel into .venv and runs the demo, `make test` runs all tests.
# PyTorch comes from pip as everywhere; to choose a build yourself, install it into .venv first.

# Threads that spin while they wait are very slow where cores are shared.
export OMP_WAIT_POLICY = passive

PYTHON = .venv/bin/python
PIP = $(PYTHON) -m pip install -q -c constraints.txt

.PHONY: demo test lint docs install

demo: .venv/installed
	$(PYTHON) -m tagreel demo

test: install
	$(PYTHON) -m pytest -n auto

lint: install
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

# The site, in build/docs; -E reads every page again, or what was warned of once would pass the second time.
docs: .venv/installed-docs
	$(PYTHON) -m sphinx -E -W --keep-going -q -b html docs build/docs

# What the tests need besides: every extra that runs on a CPU, and the tools.
install: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv .venv
	$(PIP) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev]"
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP) -e ".[docs]"
	touch $@
