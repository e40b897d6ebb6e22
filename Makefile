# Each target makes .venv itself; `make demo PYTHON=python3.12` chooses the interpreter,
# `make test ARGS="-m slow"` and `make demo ARGS="--keep 0.2"` pass options on.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: demo test check docs clean

demo: .venv/.cli
	$(BIN)/dataprune compare $(ARGS)

test: .venv/.test
	$(BIN)/python -m pytest $(ARGS)

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist site .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Empty files that say what is installed. pip is the last thing that venv makes: without it the folder is half made.
.venv/.cli: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[cli]'
	@touch $@

.venv/.test: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[cli,test]'
	@touch .venv/.cli $@

.venv/.docs: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 14) or sys.exit( \
	    "dataprune is tested on Python 3.11 to 3.14 and this is %d.%d: name another with PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv --clear .venv || { \
	    echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
