# setup | demo | quick | test | fuzz | kill | bench | gates | clients | docs | lint | lock. Each makes the environment that it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONUTF8 := 1

.PHONY: setup demo quick test fuzz kill bench gates clients docs lint lock clean
.DEFAULT_GOAL := test

$(STAMP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rbctl needs Python 3.10 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install -qq -e '.[test,lint,tensorboard]' -c constraints.txt
	touch $@

setup: $(STAMP)

# The whole road on the small bundle that ships: six drawn triplets, a relation LoRA, pictures before and after.
demo: $(STAMP)
	$(BIN)/rbctl demo --relation recipes/examples/sit_back_to_back.yaml --output runs/demo

# While you edit: without the tests that train, start processes or take a second for another reason.
quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not thorough"

# Every reader on 50,000 broken inputs, some 20 minutes of a core. FUZZ="--seed 1 --reader triplets --inputs 1000"
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz $(FUZZ)

# Kills of every command at random moments; what is resumed must equal what was left alone. KILL="--kills 20 --only demo"
kill: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m kill $(KILL)

bench: $(STAMP)
	mkdir -p bench/out
	$(BIN)/python -m pytest bench -m "not thorough" --benchmark-json=bench/out/bench.json

# Hours on two cores, minutes on a GPU; goes on where it stopped. GATES="--only vae,base" measures these alone.
gates: $(STAMP)
	$(BIN)/rbctl eval gates mini --keep docs/mini-gates.json $(GATES)

# The table in docs/clients.md, about a quarter of an hour; a program that is not given is skipped.
# COMFYUI=CHECKOUT SD_SCRIPTS=CHECKOUT INVOKEAI=PYTHON COMFYUI_PYTHON=PYTHON SD_SCRIPTS_PYTHON=PYTHON
clients: $(STAMP)
	$(BIN)/python tests/clients/table.py

# The site of README.md and docs/ in build/site; a warning or a link to nowhere stops it.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .mkdocs.yml

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install -qq -e '.[docs]' -c constraints.txt
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/rbctl && cd build/types/rbctl && ln -sfn ../../../rbctl/* ../../../plugins ../../../kernels ../../../recipes .
	MYPYPATH=build/types $(BIN)/mypy

# The release's packages with their hashes, after setup.py or constraints.txt changed.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -qq uv==0.13.9
	build/lock/bin/uv pip compile -q setup.py --all-extras -c constraints.txt --upgrade --no-config \
		--universal --python-version 3.10 --generate-hashes --no-annotate --custom-compile-command "make lock" \
		-o .github/release-requirements.txt

clean:
	rm -rf $(VENV) build dist runs bench/out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
