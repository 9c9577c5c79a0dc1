# `make help` lists the targets. Everything is installed into .venv, which later runs reuse.

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo bench bench-research bench-onnx gpu gpu-kernels gpu-suites gpu-bench test test-core test-slow test-gpu-kernels test-ecosystems \
	test-onnxruntime fuzz sanitize isa sdist wheel test-package versions browser docs lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: .venv/installed-detr ## train a small detector on digits, draw what it finds (runs/demo/; ARGS=--resume goes on)
	$(BIN)/deform-attn demo --out runs/demo $(if $(findstring --resume,$(ARGS)),,--overwrite) $(ARGS)

bench: .venv-bench/installed ## time the op against every rival (.venv-bench/; benchmarks/results/, docs/benchmarks.md)
	.venv-bench/bin/python -m benchmarks.run $(ARGS)

bench-research: .venv-ecosystems/installed ## time models of research code, stock and patched (.venv-ecosystems/; benchmarks/results/research.json)
	$(ECOSYSTEMS_ALONE) .venv-ecosystems/bin/python -m benchmarks.run --name research \
		--only end_to_end --models original ultralytics rfdetr $(ARGS)

bench-onnx: .venv-bench/installed ## time whole models and the op as files of ONNX (.venv-bench/; benchmarks/results/onnx.json)
	.venv-bench/bin/python -m benchmarks.run --name onnx --only onnx operators $(ARGS)

# A worker for each core; one that is idle takes tests from the end of another's, so that neighbours stay together.
WORKSTEAL = -m pytest --numprocesses $(or $(WORKERS),auto) --dist worksteal
PYTEST = $(BIN)/python $(WORKSTEAL)

# Nothing is installed, and no network is needed, where PYTHON has torch and pytest. Each part takes minutes; gpu-bench
# ends after eight and goes on where it is run again.
gpu: gpu-kernels gpu-suites gpu-bench ## run the tests on a GPU, then time it (PYTHON=...; or gpu-kernels, gpu-suites, gpu-bench alone)

gpu-kernels: src/deform_attn/_native.so ## run the tests that need a GPU
	PYTHONPATH=src:tests $(PYTHON) -m pytest -m gpu tests/backends/gpu_kernels

gpu-suites: src/deform_attn/_native.so ## run suites of the op, the modules, patch and the detector on a GPU (DEVICE=cuda)
	DEFORM_ATTN_TEST_DEVICE=$(or $(DEVICE),cuda) PYTHONPATH=src:tests $(PYTHON) -m pytest -m "not slow" \
		tests/core/test_semantics.py tests/core/test_functional.py tests/torch_ops/test_derivatives.py \
		tests/core/test_modules_elsewhere.py tests/interop/test_patch_elsewhere.py tests/detr/model/test_model_elsewhere.py

gpu-bench: src/deform_attn/_native.so ## time op and models on a GPU (benchmarks/results/gpu.json; ARGS="--parts op --cases enc800")
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu --minutes 8 --out benchmarks/results/gpu.json $(ARGS)

# For those who run the sources in place. `cmake --install` puts the library where the package looks for it.
src/deform_attn/_native.so: CMakeLists.txt $(wildcard native/*/*)
	cmake -S . -B build/in-place
	cmake --build build/in-place --parallel
	cmake --install build/in-place --prefix build/in-place/root
	cp $$(find build/in-place/root -name '_native.*') $@

test: lint ## lint, type-check, and run the tests (WORKERS=2; one for each core unless said)
	$(PYTEST) -m "not slow"

# What `make test` shows with the same torch need not be shown twice. Here each test runs, with each value of each of its
# parameters, and without their combinations: that is what would miss a package.
test-core: .venv-core/installed ## run each test of the op and the house with torch alone (.venv-core/)
	.venv-core/bin/python $(WORKSTEAL) -m "not slow" --each-value-once \
		tests/core tests/backends tests/house --ignore tests/backends/native

test-slow: .venv/installed-dev test-gpu-kernels ## run the tests marked slow, those of the GPU kernels too
	$(PYTEST) -m slow --ignore tests/backends/gpu_kernels

# Two runs: Triton asks for its interpreter when it meets a kernel, and then compiles none.
test-gpu-kernels: .venv/installed-dev ## run the GPU kernels in Triton's interpreter, and compile them; no GPU is needed
	TRITON_INTERPRET=1 $(PYTEST) tests/backends/gpu_kernels
	$(PYTEST) tests/backends/gpu_kernels

# The variables keep the packages from the network, from installing anything, and from writing outside of the repository.
ECOSYSTEMS_ALONE = HF_HUB_OFFLINE=1 YOLO_OFFLINE=1 YOLO_AUTOINSTALL=0 YOLO_CONFIG_DIR=.venv-ecosystems/settings

test-ecosystems: .venv-ecosystems/installed ## run real models of ultralytics, rfdetr, mmdet, groundingdino and the newest transformers, patched (.venv-ecosystems/)
	DEFORM_ATTN_ECOSYSTEMS=1 $(ECOSYSTEMS_ALONE) \
		.venv-ecosystems/bin/python -m pytest --override-ini filterwarnings=default --disable-warnings tests/ecosystems \
		tests/interop/test_interop_families.py

# 1.17, the oldest that has what the operators call, knows numpy 1 only.
test-onnxruntime: .venv/installed-dev ## run the operators in the oldest ONNX Runtime that knows numpy 2 (build/onnxruntime/)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/onnxruntime --upgrade --no-deps onnxruntime==1.19.0
	PYTHONPATH=build/onnxruntime $(PYTEST) tests/export/test_onnxruntime_operators.py tests/export/test_onnxruntime_faults.py

fuzz: .venv/installed-dev ## call the library in random ways and judge it (SECONDS=60 SEED=..., CASES=1 repeats one, FILES=1: files for ONNX Runtime)
	PYTHONPATH=tests $(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),60) \
		$(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES)) $(if $(FILES),--files)

# The kernels take a minute and a half to compile, and the cases half a minute; a program for each kind of vectors. Then the
# tests of the bindings run with a library that was built so (tests/sanitized.py). What Python keeps at its end is no leak,
# and the memory of a process, which one test measures, is mostly the sanitizer's own.
SANITIZED = tests/export/test_onnxruntime_operators.py tests/export/test_onnxruntime_faults.py \
	tests/export/test_onnxruntime_registration.py tests/backends/native/test_native_check.py tests/core/test_semantics.py
sanitize: .venv/installed-dev ## run the CPU kernels and their bindings under the address and undefined behaviour sanitizers (build/sanitize/)
	cmake -S . -B build/sanitize -DDEFORM_ATTN_SANITIZE=ON
	cmake --build build/sanitize --parallel 2
	for program in build/sanitize/sanitized-*; do $$program || exit 1; done
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONMALLOC=malloc PYTHONPATH=tests $(BIN)/python -m pytest -p sanitized --capture=sys --each-value-once $(SANITIZED) \
		--deselect tests/export/test_onnxruntime_operators.py::test_runs_keep_no_memory

# The same cases with the library as it is built in place, on processors of an age each; QEMU knows none with AVX-512. Then
# with one for aarch64. Each must choose the instruction set behind its name.
PROCESSORS = core2duo:baseline Nehalem:x86-64-v2 Haswell:x86-64-v3
CASES = -std=c++17 -O2 -Inative/include tests/kernel_cases.cpp

isa: src/deform_attn/_native.so ## run the CPU kernels as on older processors and on aarch64, in QEMU (build/isa/)
	@for name in qemu-x86_64 qemu-aarch64 aarch64-linux-gnu-g++; do command -v $$name >/dev/null || { \
		echo "there is no $$name; on Debian: apt-get install qemu-user g++-aarch64-linux-gnu"; exit 1; }; done
	cmake -S . -B build/isa/aarch64 -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	cmake --build build/isa/aarch64 --parallel 2
	aarch64-linux-gnu-g++ $(CASES) build/isa/aarch64/_native.so -o build/isa/cases-aarch64
	c++ $(CASES) src/deform_attn/_native.so -o build/isa/cases-x86-64
	for each in $(PROCESSORS); do env -u DEFORM_ATTN_ISA \
		qemu-x86_64 -cpu $${each%:*} build/isa/cases-x86-64 $${each#*:} 5 || exit 1; done
	env -u DEFORM_ATTN_ISA qemu-aarch64 -L /usr/aarch64-linux-gnu build/isa/cases-aarch64 baseline 5

# Built with what is in the environment, readable for all and dated by the last commit, so that two builds have the same
# bytes. The wheel is built from the sdist, in a folder of its own, and gets the tag of what it needs of the system.
DIST ?= dist
sdist wheel: export SOURCE_DATE_EPOCH = $(or $(shell git log -1 --format=%ct 2>/dev/null),0)
BUILD = umask 022; PATH="$(CURDIR)/.venv-package/bin:$$PATH" .venv-package/bin/python -m build --no-isolation

sdist: .venv-package/installed ## make the sdist (dist/)
	rm -rf $(DIST)/*.tar.gz
	$(BUILD) --sdist --outdir $(DIST)

wheel: .venv-package/installed ## make the sdist, and from it the wheel for this Linux (dist/)
	rm -rf $(DIST)/*.tar.gz $(DIST)/*.whl $(DIST)/built
	$(BUILD) --outdir $(DIST)/built
	umask 022; PATH="$(CURDIR)/.venv-package/bin:$$PATH" .venv-package/bin/auditwheel repair --wheel-dir $(DIST) $(DIST)/built/*.whl
	mv $(DIST)/built/*.tar.gz $(DIST)
	rm -r $(DIST)/built

test-package: wheel ## try the sdist and the wheel, and compile the kernels for other systems
	DEFORM_ATTN_PACKAGE=1 .venv-package/bin/python -m pytest --confcutdir tests/package tests/package

versions: wheel ## try the oldest, the usual and the newest torch and transformers (.venv-versions/; gigabytes; PYTHON=... ARGS="torch==2.10.*")
	$(PYTHON) tests/package/versions.py $(ARGS)

browser: ## install Chromium, which tests of the page of `explore` need (as root)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then \
		echo "there is no Chromium; installing it takes root and apt-get, so install it by hand"; exit 1; fi; \
	apt-get update -qq && apt-get install -y --no-install-recommends chromium

# -W: a link that leads nowhere, or a docstring that does not parse, is an error. Nothing is fetched from anywhere.
docs: .venv/installed-docs ## build the documentation site (docs/_build/html/index.html)
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

lint: .venv/installed-dev ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-dev ## rewrite the sources in the house's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what the other targets made, runs/ excepted
	rm -rf .venv .venv-bench .venv-core .venv-ecosystems .venv-package .venv-versions build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis docs/_build

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"deform-attn needs Python 3.11 or newer; try PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

# A change of the kernels installs again, which compiles them. torch goes first and alone, so that no other package's
# wish decides which build of it comes.
.venv/installed-%: .venv/bin/python pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*/*)
	$(INSTALL) torch
	$(INSTALL) --editable '.[$*]'
	touch $@

# torch and pytest, and nothing else that the package could lean on.
.venv-core/installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*/*)
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch pytest pytest-xdist
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv-package/installed: tests/package/requirements.txt
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/package/requirements.txt
	touch $@

# Nothing but what the file names, which holds all dependencies: so torch is the build that it names, and OpenCV the one
# without windows.
ECOSYSTEMS_INSTALL = .venv-ecosystems/bin/python -m pip install --quiet --disable-pip-version-check \
	--constraint tests/ecosystems/requirements.txt

.venv-ecosystems/installed: tests/ecosystems/requirements.txt pyproject.toml CMakeLists.txt $(wildcard native/*/*)
	$(PYTHON) -m venv .venv-ecosystems
	$(ECOSYSTEMS_INSTALL) torch torchvision setuptools
	$(ECOSYSTEMS_INSTALL) --no-deps --no-build-isolation --requirement tests/ecosystems/requirements.txt
	$(ECOSYSTEMS_INSTALL) --no-deps --editable .
	touch $@

# The rivals live apart, so that nothing of theirs changes what the tests see. One of them is compiled against torch.
BENCH_INSTALL = .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt --constraint benchmarks/constraints.txt

.venv-bench/rivals: constraints.txt benchmarks/constraints.txt benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	$(BENCH_INSTALL) torch setuptools wheel
	$(BENCH_INSTALL) --requirement benchmarks/requirements.txt
	$(BENCH_INSTALL) --no-build-isolation torch-ms-deform-attn
	touch $@

SOURCES = $(shell find src native 2>/dev/null -name '*.py' -o -name '*.cpp' -o -name '*.h')

.venv-bench/installed: .venv-bench/rivals pyproject.toml CMakeLists.txt $(SOURCES)
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	touch $@
