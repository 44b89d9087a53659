# From nothing to a result: every target makes what it needs (environment in .venv, native code, data) and reuses it later.
#
# Variables: PYTHON (3.11 or newer), TORCH and TRITON (versions), ARGS (further arguments of the target's command),
# AMEIR_FAST_BUILD (none, cpu or cuda; see setup.py), PARTS_ARGS (of bench-cpu's last command).

PYTHON ?= python3
TORCH  ?= 2.13.0
TRITON ?= 3.7.1
VENV   := .venv
BIN    := $(VENV)/bin
DATA   := data/movielens-100k
RUN    := runs/movielens-100k
ARGS   ?=

# Empty files that say a step is finished; a step that was interrupted has none and runs again.
TORCH_READY := $(VENV)/.torch-$(TORCH)
READY       := $(VENV)/.installed-$(TORCH)$(addprefix -,$(AMEIR_FAST_BUILD))
LINT_READY  := $(VENV)/.lint
BENCH_READY := $(VENV)/.bench
NATIVE      := CMakeLists.txt setup.py $(wildcard csrc/*.* csrc/*/*.*)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help pages build search results test test-slow test-gpu test-triton-matrix bench-native bench-prepare bench-planted bench-cpu \
        bench-train bench-ops bench-kernels bench-gpu bench-population sanitize lint clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | awk '{ name = $$1; $$1 = ""; printf "  make %-20s%s\n", name, $$0 }'

$(TORCH_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is older than Python 3.11; name another one with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# Both versions are pinned, and torch comes first: otherwise pip may choose a CUDA build of several gigabytes for it.
	$(BIN)/pip install --quiet torch==$(TORCH)
	@# The same condition as in pyproject.toml: triton has no wheels elsewhere.
	$(BIN)/pip install --quiet "triton==$(TRITON); platform_system == 'Linux' and platform_machine == 'x86_64'"
	@touch $@

$(READY): $(TORCH_READY) pyproject.toml $(NATIVE)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    > $(VENV)/build-requirements.txt
	$(BIN)/pip install --quiet -r $(VENV)/build-requirements.txt
	$(BIN)/pip install --quiet --no-build-isolation -e '.[test]'
	@$(BIN)/python -c 'from ameir_fast import native; native.main()'
	@touch $@

build: $(READY)  ## the environment in .venv, with the package compiled and installed in place

$(DATA)/dataset.json: | $(READY)
	$(BIN)/ameir-fast prepare movielens --output $(DATA)

search: $(READY) $(DATA)/dataset.json  ## the main job: three-step search, retraining and scoring on MovieLens-100K
	$(BIN)/ameir-fast search --data $(DATA) --run $(RUN) --overwrite $(ARGS)

results: $(READY) $(DATA)/dataset.json  ## the full table with seeds and controls, stored under bench/results
	$(BIN)/python -m ameir_fast.bench.movielens $(ARGS)

test: $(READY)  ## the tests, a process for each core, a thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# Kernels of a GPU and in the interpreter are tested by the same files.
KERNEL_TESTS := $(wildcard tests/test_triton_*.py) tests/test_gpu_plan.py
test-gpu: $(READY)  ## the Triton kernels and the GPU plan on this machine's GPU
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("error: no GPU; ameir-fast doctor says why")'
	$(BIN)/python -m pytest -q -m "not slow" $(KERNEL_TESTS) $(ARGS)

TRITONS ?= 3.6.0 3.7.1
# The interpreter of triton 3.6 takes arrays of one element for numbers, which numpy 2.4 no longer does; its compiler does not care.
test-triton-matrix: $(READY)  ## the kernels' tests, interpreted and compiled, with each of the supported versions of triton
	@for version in $(TRITONS); do \
	    test -d build/triton-$$version || $(BIN)/pip install --quiet --no-deps --target build/triton-$$version triton==$$version \
	        $$(case $$version in 3.6.*) echo 'numpy<2.4';; esac) || exit 1; \
	    echo "triton $$version"; \
	    PYTHONPATH=build/triton-$$version OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal $(KERNEL_TESTS) $(ARGS) || exit 1; \
	done

# A copy of the tree, so that the modules in use stay what they are.
SANITIZED := build/sanitize
CHECKS    := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
sanitize: $(READY)  ## the native code's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r ameir_fast kernels bench csrc tests setup.py CMakeLists.txt pyproject.toml README.md LICENSE $(SANITIZED)/
	ln -s ../bench ../kernels $(SANITIZED)/ameir_fast/
	cd $(SANITIZED) && CXXFLAGS="$(CHECKS)" LDFLAGS="$(CHECKS)" AMEIR_FAST_BUILD=cpu \
	    $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && PYTHONPATH=. OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_plan.py tests/test_native.py tests/test_distinct.py \
	    tests/test_native_sequences.py tests/test_native_fields.py tests/test_embedding_update.py \
	    tests/test_ranking.py tests/test_data_cells.py tests/test_population.py tests/test_interaction_population.py \
	    tests/test_path_children.py tests/test_metrics.py tests/test_native_properties.py -k "not faster_than" $(ARGS)

bench-native: $(READY)  ## native host code against NumPy and PyTorch, stored under bench/results
	$(BIN)/python -m ameir_fast.bench.native --json bench/results/native.jsonl $(ARGS)

bench-cpu: $(BENCH_READY)  ## the plan against eager, torch.compile and ONNX Runtime, and its parts (20 minutes), stored under bench/results
	$(BIN)/ameir-fast bench cpu --json bench/results/cpu.jsonl $(ARGS)
	$(BIN)/ameir-fast bench cpu --suite alimama,criteo --lengths full --batch 1 --engines plan,eager,compile,onnxruntime \
	    --json bench/results/cpu-latency.jsonl $(ARGS)
	$(BIN)/python -m ameir_fast.bench.parts --json bench/results/cpu-parts.jsonl $(PARTS_ARGS)

bench-train: $(READY)  ## a supernet's training step against the reference backend, as the embedding grows, and of many children (8 minutes)
	$(BIN)/ameir-fast bench train --json bench/results/train.jsonl $(ARGS)
	$(BIN)/ameir-fast bench train --children 16 --json bench/results/train-children.jsonl $(ARGS)

bench-ops: $(READY)  ## each native operation against the reference, forward and backward, with pytest-benchmark
	$(BIN)/python -m pytest -q bench/operations --benchmark-group-by=group --benchmark-columns=median,iqr,rounds \
	    --benchmark-max-time=0.5 --benchmark-json=bench/results/operations.json $(ARGS)

pages: $(READY)  ## the tables of README and docs, made again from the stored results
	$(BIN)/python -m ameir_fast.bench.pages $(ARGS)

bench-kernels: $(READY)  ## registers, spills and shared memory of every Triton kernel, from its machine code; needs no GPU
	$(BIN)/ameir-fast bench kernels --compile-only --json bench/results/kernels.jsonl $(ARGS)

bench-population: $(READY)  ## many children together against one at a time, step by step of the search, stored under bench/results
	for step in 1 2 3; do $(BIN)/ameir-fast bench population --step $$step --json bench/results/population-$$step.jsonl $(ARGS) || exit 1; done

bench-gpu: $(READY)  ## the plan against PyTorch on this machine's GPU, and a supernet's training, stored under bench/results
	$(BIN)/ameir-fast bench gpu --json bench/results/gpu.jsonl $(ARGS)

$(BENCH_READY): $(READY)
	$(BIN)/pip install --quiet pandas onnxruntime onnx
	@touch $@

bench-prepare: $(BENCH_READY)  ## preparing 10 million rows against pandas, 30 million, and feeding (15 minutes), stored under bench/results
	$(BIN)/python -m ameir_fast.bench.prepare --json bench/results/prepare.jsonl $(ARGS)

bench-planted: $(READY)  ## what the search finds of planted truth (hours; ARGS=--quick: whether it runs), under bench/results
	$(BIN)/python -m ameir_fast.bench.planted $(ARGS)

$(LINT_READY): $(READY)
	$(BIN)/pip install --quiet ruff
	@touch $@

lint: $(LINT_READY)  ## ruff over the Python code
	$(BIN)/ruff check ameir_fast kernels bench tests setup.py $(ARGS)

clean:  ## remove what was built, keep .venv, data and runs
	rm -rf build dist *.egg-info ameir_fast/_C.* ameir_fast/_driver.* ameir_fast/_plan.* ameir_fast/_build_info.json $(VENV)/.installed-*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)
