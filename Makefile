# make bench   installs everything and runs the main job; leaves out/report.html, .json, .md
# make export  installs everything and writes a deployment folder, out/export: ONNX files, clients, pictures
# make perf    our kernels against the best peer and the machine's ceiling, with targets; leaves out/perf.json
# make test    installs everything, then ruff, mypy and all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
SOURCES := CMakeLists.txt pyproject.toml $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.inl')

PEERS := $(VENV)/.peers

.PHONY: bench perf export test install clean

bench: install $(PEERS)
	$(BIN)/python -m bench

export: install
	$(BIN)/python -m export --measure --overwrite

perf: install $(PEERS)
	$(BIN)/python -m bench perf $(ARGS)

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

install: $(VENV)/.installed

# Dependencies, and what builds the native library: rarely anew.
$(VENV)/.dependencies: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the rest: a few minutes the first time"
	$(PIP) install -c constraints.txt scikit-build-core nanobind cmake ninja
	$(PIP) install -c constraints.txt --no-build-isolation -C wheel.cmake=false -e '.[test]'
	touch $@

# The peers that only measuring needs; one that cannot be had here is no reason not to measure the others.
$(PEERS): $(VENV)/.dependencies
	@if $(PIP) install -c constraints.txt openvino; then touch $@; else echo "going on without OpenVINO"; fi

# The package, linked to this folder; builds the native library, incrementally.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -W ignore -c "import fastgraph; kind = fastgraph.cpu_capability(); \
		print('CPU kernels:', kind if kind != 'aten' else 'none (no C++ compiler?); running through ATen')"
	touch $@

clean:
	rm -rf $(VENV) build out
