# Needs Python 3.10 to 3.13, make and git; everything else goes into the folder .venv.
#
#     make demo         the main job, on a real pretrained BERT
#     make help         this list
#     make test         formatting, lint, types, every test, then what faces transformers with its oldest version
#     make lint         formatting, lint and types alone
#     make benchmark    what quantizing, calibrating and training cost, and how fast exported models are
#     make docs         build the documentation into build/site
#     make notebooks    run the notebooks again and keep what they print
#     make reference    record again what the original QDQBERT computes (Python 3.10 to 3.12)
#     make clean        remove everything that these made
#
# Another Python than python3: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
REFERENCE := .venv-reference
INSTALL := -m pip install -qq --disable-pip-version-check

# Two workers, each with whole files, the longest first (tests/conftest.py).
PYTEST := -m pytest -n 2 --dist loadscope --no-loadscope-reorder --durations=15

# The original QDQBERT classes need packages of their own, and those a Python before 3.13; with a later one
# the tests that run the original classes are skipped.
ORIGINALS := $(shell $(PYTHON) -c 'import sys; print("$(REFERENCE)" if sys.version_info < (3, 13) else "")')

.PHONY: help demo test lint benchmark docs notebooks reference clean

help:
	@sed -n 's/^#     make/make/p' Makefile

demo: $(VENV)/installed
	$(VENV)/bin/python demo/demo.py

test: lint $(VENV)/oldest $(ORIGINALS:%=%/installed)
	$(ORIGINALS:%=QDQPATCH_REFERENCE_PYTHON=$(CURDIR)/%/bin/python) $(VENV)/bin/python $(PYTEST)
	PYTHONPATH=$(VENV)/oldest $(VENV)/bin/python $(PYTEST) -m "compat and not slow"

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

benchmark: $(VENV)/installed .peers/installed
	$(VENV)/bin/python benchmarks/quantize_time.py
	$(VENV)/bin/python benchmarks/forward_time.py
	$(VENV)/bin/python benchmarks/calibration_time.py
	$(VENV)/bin/python benchmarks/export_speed.py
	$(VENV)/bin/python benchmarks/tensorrt_rtx.py
	$(VENV)/bin/python benchmarks/accuracy.py
	$(VENV)/bin/python benchmarks/embedders.py
	$(VENV)/bin/python benchmarks/embedder_peers.py
	$(VENV)/bin/python benchmarks/training_cost.py
	$(VENV)/bin/python benchmarks/training.py

docs: $(VENV)/installed
	$(VENV)/bin/python docs/rooms.py
	$(VENV)/bin/mkdocs build

notebooks: $(VENV)/installed
	$(VENV)/bin/python notebooks/execute.py

reference: $(REFERENCE)/installed
	$(REFERENCE)/bin/python tests/reference/make.py

clean:
	rm -rf $(VENV) $(REFERENCE) .peers build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# torch by itself first, pinned: where a CPU build of it is offered, pip then takes that, while a range
# would take the newest build, with gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info[:2] <= (3, 13) or sys.exit( \
	    "Python 3.10 to 3.13 is needed, and $(PYTHON) is %d.%d: make PYTHON=..." % sys.version_info[:2])'
	@echo "Installing into $(VENV), once; this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(INSTALL) torch==2.13.0 -c constraints.txt
	$(VENV)/bin/python $(INSTALL) -e ".[dev,demo]" -c constraints.txt
	@touch $@

# The tools that exported models are compared with, in a folder of their own: they pin older packages.
.peers/installed: benchmarks/peers.txt $(VENV)/installed
	$(VENV)/bin/python $(INSTALL) --no-deps --upgrade --target .peers -r benchmarks/peers.txt
	@touch $@

$(VENV)/oldest: $(VENV)/installed tests/oldest.txt
	rm -rf $@
	$(VENV)/bin/python $(INSTALL) --no-deps --target $@ -r tests/oldest.txt
	@touch $@

$(REFERENCE)/installed: tests/reference/requirements.txt
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python $(INSTALL) -r tests/reference/requirements.txt
	@touch $@
