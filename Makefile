# Everything here is a thin name for a `python -m redlib ...` call; on Windows type those instead.
# `make setup` needs Python 3.11 or newer and the network once; the rest works without.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m redlib
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
READY := $(VENV)/ready
LMMS := .venv-lmms-eval

.DEFAULT_GOAL := help
.PHONY: help setup figures smoke test test-real test-page torture bench bench-gpu lmms-eval lab

help: ## show this list
	@echo "make figures   run every notebook and draw every figure; ends with the page to open"
	@echo "make smoke     the same at the smallest scale, not published"
	@echo "make test      lint, format check, tests, and every notebook at the smallest scale"
	@echo "make test-real the parameter files of the 7B models, on small models and data of their form"
	@echo "make test-page open the pages in headless Chromium; says what to install if it is missing"
	@echo "make bench     time and exactness of the engine against stock transformers"
	@echo "make bench-gpu the same for random 7B and 8B models, needs a GPU"
	@echo "make torture   kill a run at 20 random moments and see that its table stays the same"
	@echo "make lmms-eval make an environment with lmms-eval and score a pruned model by its task"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make setup     make .venv from requirements.lock (the others do it by themselves)"

setup: $(READY)

# One resolver pass over the lock, then the package itself: without dependencies (the lock has them
# all) and without a build environment (setuptools is in the lock), so nothing is fetched twice.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "redlib: $(PYTHON) is not Python 3.11 or newer; say make PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up $(VENV): a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --no-index --editable .
	@touch $(READY)

figures: $(READY)
	@$(RUN) run params/tiny.yaml

smoke: $(READY)
	@$(RUN) run params/smoke.yaml

# The notebooks run at their defaults, in a working folder of their own that starts empty, and
# first, as they take longest. One pytest call, so that its closing line counts everything; two
# processes of one thread each, since small models leave a second thread nothing to do.
test: export HF_HUB_OFFLINE = 1
test: export OMP_NUM_THREADS = 1
test: export REDLIB_RUNS = $(CURDIR)/$(VENV)/test-runs
test: $(READY)
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@rm -rf $(REDLIB_RUNS)
	@$(VENV)/bin/python -m pytest notebooks tests -p no:cacheprovider \
	  -n 2 --no-loadscope-reorder \
	  --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg

# Whole runs, minutes each, that no change of the embedded models' part can break.
test-real: export HF_HUB_OFFLINE = 1
test-real: $(READY)
	@$(VENV)/bin/python -m pytest tests/real_runs.py tests/photographs_run.py \
	  tests/benchmarks_run.py tests/training_run.py -p no:cacheprovider

test-page: $(READY)
	@$(VENV)/bin/python tests/page.py

bench: $(READY)
	@$(RUN) bench

bench-gpu: $(READY)
	@$(RUN) bench --gpu

torture: $(READY)
	@OMP_NUM_THREADS=1 $(VENV)/bin/python tests/torture.py

# lmms-eval asks for some hundred packages more, and lives apart, with everything of the lock but
# PyAV, of which it wants an older one. Where torch is a CPU build, the torchvision that it asks for
# cannot load; only OneVision's stock processor needs it.
$(LMMS)/ready: requirements.lock pyproject.toml
	@echo "setting up $(LMMS): 3 GB and some minutes, once"
	@$(PYTHON) -m venv $(LMMS)
	@sed '/^av==/d' requirements.lock > $(LMMS)/requirements.txt
	@$(LMMS)/bin/python -m pip install -qq --disable-pip-version-check \
	  -r $(LMMS)/requirements.txt lmms-eval==0.7.3
	@$(LMMS)/bin/python -c 'import torchvision' 2> /dev/null \
	  || $(LMMS)/bin/python -m pip uninstall -qq -y torchvision
	@$(LMMS)/bin/python -m pip install -qq --disable-pip-version-check \
	  --no-deps --no-build-isolation --no-index --editable .
	@touch $(LMMS)/ready

lmms-eval: export HF_HUB_OFFLINE = 1
lmms-eval: $(LMMS)/ready
	@$(LMMS)/bin/python -m pytest -rP tests/harness.py -p no:cacheprovider

lab: $(READY)
	@$(VENV)/bin/python -m jupyter lab --notebook-dir notebooks
