# Two commands matter: `make serve` and `make test`. Each sets up what it needs in .venv (Python 3.11 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARCHIVE_RESNET50 ?=
ARCHIVE_ENCODER ?=

.PHONY: serve test test-zoo check format train bench bench-int8 bench-loop bench-quota bench-statistics bench-drift bench-sampling bench-memory bench-peers clean help

help:            ## list the commands
	@grep -E '^[a-z0-9-]+: .*##' Makefile | sed -E 's/:.*##/\t/'

# The stamps hold what is installed; serving never installs torch.
$(VENV)/serve.stamp: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; run make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch first and by its exact version: where a build for the CPU is configured, it is taken
$(VENV)/test.stamp: $(VENV)/serve.stamp
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[train,test]'
	touch $@

# without a compiler there is no library, and numpy does the same work
service/statistics/observe.so: service/statistics/observe.c service/statistics/lanes.h service/statistics/onnxruntime_abi.h $(VENV)/serve.stamp
	$(BIN)/python -m service.statistics.library

serve: $(VENV)/serve.stamp service/statistics/observe.so  ## serve both shipped models on http://127.0.0.1:8000 (settings: NORMSCOPE_...)
	$(BIN)/python -m service

test: $(VENV)/test.stamp service/statistics/observe.so  ## run the tests
	$(BIN)/python -m pytest

test-zoo: $(VENV)/test.stamp service/statistics/observe.so  ## run the tests of models from outside by both exporters, in all opsets (long)
	$(BIN)/python -m pytest tests/zoo -m "zoo or not zoo"

check: $(VENV)/test.stamp        ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy service models tests

format: $(VENV)/test.stamp       ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train: $(VENV)/test.stamp        ## train both models (hours on a CPU) and write models/artifacts; ARCHIVE_RESNET50=, ARCHIVE_ENCODER= for local data
	$(BIN)/python -m models train encoder --run runs/encoder $(if $(wildcard runs/encoder/checkpoint.pt),--resume) $(if $(ARCHIVE_ENCODER),--archive $(ARCHIVE_ENCODER))
	$(BIN)/python -m models export encoder --run runs/encoder $(if $(ARCHIVE_ENCODER),--archive $(ARCHIVE_ENCODER))
	$(BIN)/python -m models reference encoder $(if $(ARCHIVE_ENCODER),--data $(ARCHIVE_ENCODER))
	$(BIN)/python -m models train resnet50 --run runs/resnet50 $(if $(wildcard runs/resnet50/checkpoint.pt),--resume) $(if $(ARCHIVE_RESNET50),--archive $(ARCHIVE_RESNET50))
	$(BIN)/python -m models export resnet50 --run runs/resnet50 $(if $(ARCHIVE_RESNET50),--archive $(ARCHIVE_RESNET50))
	$(BIN)/python -m models reference resnet50 $(if $(ARCHIVE_RESNET50),--data $(ARCHIVE_RESNET50))

bench: $(VENV)/test.stamp service/statistics/observe.so  ## print what the statistics cost
	$(BIN)/python -m tests.benchmarks.overhead

bench-statistics: $(VENV)/test.stamp service/statistics/observe.so  ## print what storing statistics costs under load (needs wrk), and how long queries take
	$(BIN)/python -m tests.benchmarks.storing
	$(BIN)/python -m tests.benchmarks.query

bench-sampling: $(VENV)/test.stamp service/statistics/observe.so  ## print what counting a share of the traffic costs (minutes; needs wrk)
	$(BIN)/python -m tests.benchmarks.sampling

bench-memory: $(VENV)/test.stamp service/statistics/observe.so  ## print how much memory the probes take (minutes)
	$(BIN)/python -m tests.benchmarks.memory

INT8 := .bench/int8/resnet50/1-int8
$(INT8)/manifest.json: $(VENV)/test.stamp models/quantization.py models/artifacts/resnet50/1/manifest.json
	rm -rf $(INT8)
	$(BIN)/python -m models quantize resnet50 --output .bench/int8 $(if $(ARCHIVE_RESNET50),--data $(ARCHIVE_RESNET50))

bench-int8: $(INT8)/manifest.json service/statistics/observe.so  ## quantize resnet50 and print how much faster it is (minutes)
	$(BIN)/python -m tests.benchmarks.quantized models/artifacts/resnet50/1 $(INT8)

bench-loop: $(VENV)/test.stamp service/statistics/observe.so  ## measure how long the event loop stands still under load (minutes; needs wrk)
	$(BIN)/python -m tests.benchmarks.event_loop

bench-quota: $(VENV)/test.stamp service/statistics/observe.so  ## measure threads and spinning on fewer cores than the machine has
	$(BIN)/python -m tests.benchmarks.quota

bench-drift: $(VENV)/test.stamp  ## count false alarms of the drift test over months of windows without a change (most of an hour)
	$(BIN)/python -m tests.benchmarks.false_alarms

# each peer gets an environment of its own under .bench; NORMSCOPE_CLINC150 and NORMSCOPE_IMAGENETTE name local data for real inputs
bench-peers: $(VENV)/test.stamp service/statistics/observe.so  ## measure beside LitServe, BentoML, MLServer and Ray Serve, then overload (an hour; needs wrk)
	$(BIN)/python -m tests.benchmarks.peers
	$(BIN)/python -m tests.benchmarks.peers --overload

clean:           ## remove the environment and caches
	rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache *.egg-info service/statistics/observe.so
