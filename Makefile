# Two commands: `make demo` installs tagreel into .venv and runs the demo, `make test` runs all tests.
# PyTorch comes from pip as everywhere; to choose a build yourself, install it into .venv first.

# Threads that spin while they wait are very slow where cores are shared.
export OMP_WAIT_POLICY = passive

PYTHON = .venv/bin/python

.PHONY: demo test lint install

demo: install
	$(PYTHON) -m tagreel demo

test: install
	$(PYTHON) -m pytest -n auto

lint: install
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(PYTHON) || python3 -m venv .venv
	$(PYTHON) -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@
