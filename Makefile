# What the commands need is installed into .venv; nothing outside the checkout is touched but the
# fetched model and what the tests compile, which live in $JAX_LLAMA3_HOME (default: a folder of the
# user's cache); `make clean` takes the second away.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The version the tests are run with; installed first, so that nothing else chooses a build.
TORCH ?= torch==2.13.0

.PHONY: demo test slow course course-html lab lint clean

demo: $(VENV)/demo
	$(BIN)/python -m convert fetch smollm2-135m-instruct
	$(BIN)/python -m jax_llama3 generate -p "What is the capital of France?"

# What a contributor runs. It compiles thousands of small programs, and quickly means that XLA
# optimises them less.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
test: $(VENV)/test
	$(BIN)/python -m convert fetch smollm2-135m-instruct
	$(PYTEST) -m "not slow" --compile-quickly

# Planted bugs, lessons with faults and rebuilt, killed conversions, other systems, the README and all
# else that computes with the default model: programs as everybody's are compiled. Then what computes
# little, and is done sooner if XLA optimises less.
slow: $(VENV)/test
	$(BIN)/python -m convert fetch smollm2-135m-instruct
	$(PYTEST) -m "slow and (real or not quickly)"
	$(PYTEST) -m "quickly and not real" --compile-quickly

# Runs every lesson anew and writes notebooks/en and notebooks/zh. What was changed there by hand is lost;
# `make lab` opens a copy that is the reader's own.
course: $(VENV)/course
	@echo "Rebuilding the lessons in notebooks/en and notebooks/zh; to write in a copy of them: make lab"
	$(BIN)/python -m convert fetch smollm2-135m-instruct
	$(BIN)/python -m notebooks.build

course-html: $(VENV)/course
	$(BIN)/python -m notebooks.html

lab: $(VENV)/course
	$(BIN)/python -m convert fetch smollm2-135m-instruct
	$(BIN)/python -m notebooks.lab

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: $(BIN)/python pyproject.toml
	@echo "Installing jax_llama3 and jax into $(VENV); pip says nothing for about a minute."
	$(BIN)/python -m pip install --quiet --editable ".[cpu]" "gguf>=0.17"
	touch $@

# Two lessons compare with torch's files and with transformers.
$(VENV)/course: $(BIN)/python pyproject.toml
	@echo "Installing jax_llama3, torch and JupyterLab into $(VENV); pip says nothing for some minutes."
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[convert,compare,cpu,course]"
	touch $@

$(VENV)/test: $(BIN)/python pyproject.toml
	@echo "Installing jax_llama3, torch and the tests' other references into $(VENV); pip says nothing for some minutes."
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[convert,compare,cpu,plot,course,test]"
	# Meta's own model, to compare with. Most of what it asks for is not needed to run it.
	$(BIN)/python -m pip install --quiet --no-deps "llama-models==0.3.0"
	$(BIN)/python -m pip install --quiet setuptools wheel
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation "fairscale==0.4.13"
	# What quantised repositories and adapters are compared with; torch is installed already.
	$(BIN)/python -m pip install --quiet --no-deps "compressed-tensors==0.20.1" "loguru>=0.7" "bitsandbytes==0.50.2" "peft==0.21.2"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
	rm -rf "$${JAX_LLAMA3_HOME:-$${XDG_CACHE_HOME:-$$HOME/.cache}/jax_llama3}/compiled-by-tests"
