# Two commands do all set-up on a machine with Python 3.11-3.13 and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
DEMO := build/demo
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal
OPTIMUM := build/optimum
LYCORIS := build/lycoris
PYTHONS := 3.11 3.12 3.13
# Where it is set, every process compiles this package and the tests again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-all check python-matrix distribution conformance fold-table sizes \
  executorch-fp16 mutations schedulers pipelines dense optimum schema web swift-env ios testdata \
  mil-mutations coreml-ladder shared shapes export-times runner android android-docs \
  android-results bench bench-sd15 bench-loopback bench-report devices ios-faults \
  ios-results loras paper clean

setup: $(VENV)/.installed

# uv is one wheel; with nothing cached it installs the rest in a sixth of pip's time.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; name it with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'
	@touch $@

## Export `inpaint` int8 from the embedded checkpoint to the three targets at the same time, verify,
## print one table, draw what they make beside PyTorch -> build/demo/inpaint.png
TARGETS := onnx coreml executorch
demo: setup
	@mkdir -p $(DEMO)
	@$(MAKE) --no-print-directory -j3 $(TARGETS:%=demo-%)
	@$(BIN)/mtu-export verify $(TARGETS:%=$(DEMO)/inpaint-%-int8)
	@$(BIN)/python -m benchmarks.shapes.demo $(DEMO)

demo-%:
	@echo "mtu-export $* --task inpaint --int8"
	@OMP_NUM_THREADS=1 $(BIN)/mtu-export $* --task inpaint --int8 --force \
	  -o $(DEMO)/inpaint-$*-int8 > $(DEMO)/$*.log 2>&1 || { cat $(DEMO)/$*.log; exit 1; }

## The test suite with the corners of its matrices, and that of runtime/android.
test: setup android
	$(PYTEST) -m "not exhaustive"

## The whole test suite: every combination, every stage (an hour on two cores).
test-all: setup
	$(PYTEST)

## Format, lint, types, fast tests and import rules: under two minutes.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST) -m "not slow"

## The fast tests on every Python that is supported, in environments of their own. pyenv's are
## taken where they are; what is missing uv downloads.
python-matrix: $(PYTHONS:%=python-%)

python-%: setup
	$(UV) venv --quiet --clear --python $(firstword $(wildcard $(HOME)/.pyenv/versions/$*.*/bin/python) $*) \
	  build/$@
	$(UV) pip install --quiet --python build/$@/bin/python --compile-bytecode -c constraints.txt \
	  -e '.[dev]'
	OMP_NUM_THREADS=1 build/$@/bin/python -m pytest -n auto --dist worksteal -m "not slow"

## Wheel and sdist: what is in them, and what the wheel does where there is no checkout.
distribution: setup
	$(BIN)/python .ci/distribution.py

## Every task x target x scheme on tiny pipelines -> benchmarks/results/conformance.* (an hour).
conformance: setup
	$(BIN)/python benchmarks/conformance.py

## Largest error of the fold by number of experts -> benchmarks/results/fold.*
fold-table: setup
	$(BIN)/python benchmarks/fold.py

## SD 1.5 and SDXL size, every target and scheme -> benchmarks/results/sizes.* (two hours, 35 GB).
sizes: setup
	$(BIN)/python benchmarks/sizes.py

## What float16 brings on ExecuTorch -> benchmarks/results/executorch_fp16.json
executorch-fp16: setup
	$(BIN)/python benchmarks/executorch_fp16.py

## 1,000 mutated checkpoints and bundles -> benchmarks/results/mutations.* (an hour).
mutations: setup
	$(BIN)/python benchmarks/mutations.py

## The loop over every scheduler's table against diffusers -> benchmarks/results/schedulers.*
schedulers: setup
	$(BIN)/python benchmarks/schedulers.py

## The forms of manifest.json and of benchmark records -> runtime/*.schema.json
schema: setup
	$(BIN)/python benchmarks/schema.py

## onnxruntime-web, which `bench --device web` serves, and TypeScript, which checks the types of
## runtime/web -> the cache; from the npm registry, once.
TYPESCRIPT := 5.9.3
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mtu-export
web: setup
	$(BIN)/python -m mtu_export.bench.web.engine
	@test -d $(CACHE)/typescript/node_modules/typescript || npm install --prefix $(CACHE)/typescript \
	  --no-package-lock --ignore-scripts --no-audit --no-fund typescript@$(TYPESCRIPT)

## Swift 6 for runtime/ios: this machine's own, or Debian 13's in the cache (root; once, two minutes).
swift-env:
	$(PYTHON) runtime/ios/toolchain.py env

## The Swift package of runtime/ios: lint, a build without warnings, its tests; where there is no
## Swift, a line that says so.
ios: setup
	$(BIN)/python runtime/ios/toolchain.py check

## A bundle, a request and its result, vectors for readers in every language -> runtime/testdata
testdata: setup
	$(BIN)/python -m benchmarks.testdata

## Whole loops against diffusers' pipelines, and a LoRA -> benchmarks/results/pipelines.*
pipelines: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pipelines.py

## Dense pipelines of every kind against diffusers' own -> benchmarks/results/dense.*
dense: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dense.py

## ONNX bundles opened by optimum-onnx in an environment of its own -> benchmarks/results/optimum.*
optimum: setup $(OPTIMUM)/.installed
	$(BIN)/python benchmarks/onnx_in_optimum.py --python $(OPTIMUM)/bin/python

$(OPTIMUM)/.installed: benchmarks/optimum.txt
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/optimum.txt
	@touch $@

## Every form of LoRA against diffusers, PEFT, LyCORIS or its equation -> benchmarks/results/loras.*
loras: setup $(LYCORIS)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(LYCORIS) $(BIN)/python benchmarks/loras.py

$(LYCORIS)/.installed: benchmarks/lycoris.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --target $(LYCORIS) -r $<
	@touch $@

## Mutants of the MIL evaluator against its tests -> benchmarks/results/mil_mutations.* (15 minutes).
mil-mutations: setup
	$(BIN)/python benchmarks/mil_mutations.py

## Core ML packages evaluated from disk -> benchmarks/results/coreml_ladder.* (half an hour, 7 GB).
coreml-ladder: setup
	$(BIN)/python benchmarks/coreml_ladder.py --full

## Four tasks on one set of weights against one -> benchmarks/results/shared.* (two hours, 16 GB).
shared: setup
	$(BIN)/python benchmarks/shared.py

## Time of one export of the embedded model -> benchmarks/results/export_times.* (10 minutes); with
## TREES="before=DIR now=." other checkouts take turns with it.
export-times: setup
	$(BIN)/python benchmarks/export_times.py $(TREES)

## Faults of an iPhone, as users see them -> docs/faults_ios.md
ios-faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ios_faults.py

## Records that users have sent -> docs/devices.md
devices: setup
	$(BIN)/python benchmarks/devices.py

## FLOPs and parameters of the published models, beside the paper's -> benchmarks/results/paper.*
paper: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/paper.py

## Train the small world's models on a CPU -> benchmarks/results/shapes_small.* (hours, resumable).
shapes: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.shapes small

## The C++ runner of this machine, or of phones with ARCH=aarch64 -> build/runner/<arch>
runner: setup
	$(BIN)/python runtime/android/runner/assemble.py $(ARCH:%=--arch %)

## runtime/android: every module built and tested by Maven, in one run; where there is no JDK or Maven,
## a line that says so -> runtime/android/cli/target/mtu-cli.jar
android: setup
	$(BIN)/python runtime/android/build.py

## Pages of the public names of runtime/android, without warnings -> runtime/android/*/target/dokka
android-docs: setup
	$(BIN)/python runtime/android/build.py docs

## Sizes and page alignment of what Android apps embed, seconds a picture in Java beside Python
## -> benchmarks/results/android.*
android-results: android
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/android.py

## What iOS apps embed: sizes of the modules compiled for release -> benchmarks/results/ios.*
ios-results: setup
	$(BIN)/python benchmarks/ios.py

## The suite on the embedded model, on this host -> benchmarks/results/bench_embedded*.json (a
## quarter of an hour, later four minutes).
bench: setup runner
	$(BIN)/python benchmarks/bench.py

## The suite at SD 1.5 size -> benchmarks/results/bench_sd15_*.json (three hours, 19 GB, 40 GB of
## disk).
bench-sd15: setup runner
	$(BIN)/python benchmarks/bench_sd15.py

## The aarch64 runner on a loopback phone behind adb, by qemu -> benchmarks/results/bench_loopback.json,
## and the faults of a phone, as users see them -> docs/faults.md
bench-loopback: setup
	rm -f build/faults.md
	MTU_RECORD=benchmarks/results/bench_loopback.json MTU_FAULTS=build/faults.md OMP_NUM_THREADS=1 \
	  $(BIN)/pytest -n 0 tests/bench/loopback
	cp build/faults.md docs/faults.md

## One page of all records -> benchmarks/results/bench.{html,md,csv}, docs/devices.md
bench-report: setup
	$(BIN)/mtu-export report benchmarks/results/bench_*.json -o benchmarks/results/bench.html \
	  --markdown benchmarks/results/bench.md --csv benchmarks/results/bench.csv --force
	$(BIN)/python benchmarks/devices.py

clean:
	rm -rf build $(VENV)
