# All commands for this repository; `make` alone lists them. Only a local cluster needs root.
SHELL := /bin/bash
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
UV := $(or $(shell command -v uv),$(CACHE)/uv/bin/uv)
RUN := $(UV) run --frozen --no-sync
LOCAL := $(RUN) python -m local_cluster
HELM_BUILT := $(CACHE)/bin/helm-*/helm
export PATH := $(patsubst %/,%,$(dir $(UV))):$(PATH)
export UV_PYTHON_DOWNLOADS := never
export PYTHONPATH := $(CURDIR)/dev
# Write byte code even if the environment forbids it: the trainer imports 3,800 modules, which takes less than half the
# time once they are compiled.
export PYTHONDONTWRITEBYTECODE :=
# The theme of the site announces its successor at each build.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs
# One test process per core. Each imports the libraries of the trainer, about 1 GiB.
PARALLEL := --numprocesses=logical --maxprocesses=4
# Clusters are independent of the checkout, so several can run at once: make cluster-up NAME=test
NAME := dev

.PHONY: help setup check lint types test-fast test test-kueue test-upgrade generate image cluster-up cluster-down demo demo-down demo-notice samples bench-operator bench-trainer bench-prepare bench-memory bench-sharding bench-verdicts bench-gpu test-gpu test-matrix test-serving docs docs-serve

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(UV) ## create the virtual environment
	@$(UV) sync --frozen --all-extras --all-groups

$(CACHE)/uv/bin/uv:
	@python3 -m venv $(CACHE)/uv && $(CACHE)/uv/bin/pip install --quiet --no-cache-dir uv==0.13.9

check: setup ## lint, types, architecture, fast tests: less than a minute
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target lint types test-fast

lint:
	@$(RUN) ruff check && $(RUN) ruff format --check && $(RUN) lint-imports

types:
	@$(RUN) mypy

test-fast:
	@$(RUN) pytest --quiet $(PARALLEL) --dist=worksteal --ignore=tests/chart \
	  -m "not s3 and not training and not cluster and not browser and not gpu and not upgrade and not serving"

test: check ## all tests except upgrade, GPU, Kueue and serving, in order; needs root for the local cluster
	@$(LOCAL) browser
	@$(LOCAL) tools && HELM=$$(ls $(HELM_BUILT)) $(RUN) python -m finetune_operator.codegen --check
	@$(RUN) pytest --quiet $(PARALLEL) tests/chart
	@OMP_NUM_THREADS=1 $(RUN) pytest $(PARALLEL) --dist=loadfile --no-loadscope-reorder \
	  -m "(s3 or training) and not cluster and not browser and not gpu"
	@# These wait more than they compute, and each process has an API server of its own.
	@$(RUN) pytest --numprocesses=4 --dist=loadfile -m "(cluster or browser) and not gpu and not kueue" tests/operator tests/cli
	@trap '$(LOCAL) down test' EXIT; $(LOCAL) up test && \
	  $(RUN) pytest --ignore=tests/operator --ignore=tests/cli -m "cluster and not gpu and not kueue"

test-kueue: setup ## tests with the real Kueue, built from source, in a separate cluster; 11 minutes of CPU time the first time
	@trap '$(LOCAL) down kueue' EXIT; $(LOCAL) up kueue && FINETUNE_TEST_CLUSTER=kueue $(RUN) pytest -rP -m kueue

test-upgrade: setup ## helm upgrade and rollback from earlier versions with active runs; needs the complete history
	@$(LOCAL) tools && $(RUN) pytest -m upgrade

bench-operator: setup ## compare the operator with that of Kubeflow Trainer on a real API server, by hand; 25 minutes
	@$(LOCAL) tools && $(RUN) python -m tests.bench.bench_operator

bench-trainer: setup ## compare S3 transfers, start and step time with boto3, s5cmd and plain TRL; 10 minutes
	@$(RUN) python -m tests.bench.bench_trainer

docs: setup ## build the documentation site into build/site
	@$(MKDOCS) build

docs-serve: setup ## serve the documentation site on 127.0.0.1:8000 while its pages are edited
	@$(MKDOCS) serve

generate: setup ## generate the CRD, install.yaml and the reference pages
	@PYTHONPATH=$(CURDIR)/dev:$(CURDIR) $(RUN) python -m documentation
	@HELM=$${HELM:-$$(ls $(HELM_BUILT) 2>/dev/null)} $(RUN) python -m finetune_operator.codegen
	@$(RUN) python -m finetune_cli.reference

image: setup ## build both images, for local clusters
	@$(LOCAL) images

cluster-up: setup ## bring up a local cluster: Kubernetes and an S3 server (NAME=dev)
	@$(LOCAL) up $(NAME)

cluster-down: setup ## remove it (NAME=dev)
	@$(LOCAL) down $(NAME)

# The demo needs one package of the virtual environment. It keeps its own, so that .venv stays complete or absent, and
# removes the cache of the packages that it downloads for its images.
demo demo-down: export UV_PROJECT_ENVIRONMENT := $(CACHE)/demo/venv
demo demo-down: export UV_CACHE_DIR := $(CACHE)/demo/uv-cache
demo: demo-notice $(UV) ## one complete fine-tuning run on a local cluster; about 13 minutes the first time, 5 later
	@$(UV) sync --quiet --frozen --only-group demo
	@$(LOCAL) demo

demo-down: $(UV) ## remove the demo's cluster
	@$(UV) sync --quiet --frozen --only-group demo
	@$(LOCAL) demo-down

demo-notice:
	@python3 -m local_cluster.notice

samples: setup ## train the samples of applications, graders and rewards on the CPU, by hand; prints what they improved
	@$(RUN) python -m tests.bench.bench_samples

bench-prepare: setup ## compare data preparation with TRL and LLaMA-Factory, and measure its memory, by hand (ROWS="10000 100000")
	@$(RUN) python -m tests.bench.bench_chat_rows
	@$(RUN) python -m tests.bench.bench_prepare $(ROWS)

bench-sharding: setup ## memory of each rank while it loads a sharded base model, by hand; 3 minutes
	@$(RUN) python -m tests.bench.bench_sharding

bench-memory: setup ## count peak memory by phase on the CPU, compared with the prediction of plan, by hand; 15 minutes
	@OMP_NUM_THREADS=1 $(RUN) python -m tests.bench.bench_memory

bench-verdicts: setup ## measure how often the verdicts on bias and overfitting are right, over 20 seeds, by hand; hours on a CPU
	@$(RUN) python -m tests.bench.bench_verdicts

bench-gpu: setup ## tokens per second, memory and losses of the training paths on one GPU, by hand; 8 minutes
	@PYTHONPATH=trainer:. $(RUN) python tests/gpu/bench_gpu.py $(BENCH_GPU)

test-gpu: setup ## tests that need a GPU, by hand on a machine that has one; 6 minutes
	@$(RUN) pytest -m gpu tests/gpu

test-serving: setup ## load published results in vLLM and llama.cpp on the CPU and compare answers, by hand; 30 minutes
	@$(LOCAL) tools && OMP_NUM_THREADS=2 $(RUN) python -m tests.serving.check_vllm
	@$(RUN) pytest -rP -m serving tests/serving

test-matrix: setup ## measure which model families work, and write the support matrix; 15 minutes
	@OMP_NUM_THREADS=1 $(RUN) python -m tests.matrix.measure --write
	@OMP_NUM_THREADS=1 $(RUN) python -m tests.matrix.measure --write --unsloth
	@OMP_NUM_THREADS=1 $(RUN) python -m tests.matrix.measure --write --sharding
	@OMP_NUM_THREADS=1 $(RUN) python -m tests.matrix.kernels
