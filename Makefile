# make demo    a picture from a prompt, drawn by the light install:  make demo PROMPT="a green apple, cartoon" OUT=apple.png
# make test    every test                                            (what a change must pass: make check test)
# make test-engines    the engines that bring more than a test of every day should: a venv of its own, then their tests
# make check   formatting, lint, types
# make clean   removes what these commands made, the pictures excepted

PYTHON ?= python3
DEMO_VENV := .venv-demo

.PHONY: demo test test-engines check clean

# As environment variables: quotes in a prompt then need no escaping in the recipe.
demo: export PROMPT := a red car, 3D render
demo: export OUT := demo.png
demo: $(DEMO_VENV)/.installed
	@$(DEMO_VENV)/bin/snapfusion generate "$$PROMPT" --out "$$OUT"

# One process a core, each on one thread (tests/conftest.py): most of a test is Python, and tiny networks gain nothing from more.
test: .venv/.installed
	.venv/bin/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-engines: .venv-engines/.installed
	.venv-engines/bin/pytest tests/engines

check: .venv/.installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright

clean:
	rm -rf .venv .venv-demo .venv-engines build src/snapfusion.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo installs as a user would, so it follows the sources; build/ goes first, because setuptools packs what it finds there.
$(DEMO_VENV)/.installed: pyproject.toml constraints.txt $(shell find src/snapfusion -type f -not -path '*/__pycache__/*')
	@echo "Installing SnapFusion into $(DEMO_VENV) (once)"
	@$(PYTHON) -m venv $(DEMO_VENV)
	@rm -rf build
	@$(DEMO_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt .
	@rm -rf build
	@touch $@

# Editable: only a change of the dependencies installs again. Python compiles what is imported, which is a part of it all.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[compress,onnx,test]"
	touch $@

.venv-engines/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[compress,onnx,genai,executorch,coreml,test]"
	touch $@
