# setup | demo | test | bench | lint. Each makes the environment first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONUTF8 := 1

.PHONY: setup demo test bench lint clean
.DEFAULT_GOAL := test

$(STAMP): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rbctl needs Python 3.10 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install -qq -e '.[test,lint,tensorboard]' -c constraints.txt
	touch $@

setup: $(STAMP)

# Until a bundle of trained weights ships, the demo runs on random ones: it shows the road, its pictures are noise.
demo: $(STAMP)
	$(BIN)/rbctl demo --output runs/demo
	$(BIN)/rbctl finetune --relation hug --data runs/demo/hug --bundle runs/demo/tiny-sdxl --recipe demo
	$(BIN)/rbctl sample runs/demo/prompts.txt --bundle runs/demo/tiny-sdxl --output runs/demo/pictures
	@echo "look at runs/demo/pictures/grid.png (noise: the demo's model has random weights)"

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

bench: $(STAMP)
	mkdir -p bench/out
	$(BIN)/python -m pytest bench --benchmark-json=bench/out/bench.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/rbctl && cd build/types/rbctl && ln -sfn ../../../rbctl/* ../../../plugins ../../../kernels ../../../recipes .
	MYPYPATH=build/types $(BIN)/mypy

clean:
	rm -rf $(VENV) build dist runs bench/out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
