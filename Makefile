# make install; make demo. Every recipe is a line that you can type yourself.
PYTHON ?= python3
DATA ?= ../shared/data
RUNS ?= runs
# Options of pip that say where torch comes from: without a GPU a build for CPUs is a tenth of the size.
TORCH_FROM ?=

BIN := .venv/bin
SCANBRIDGE := $(BIN)/scanbridge
INSTALLED := .venv/installed
DEMO := $(RUNS)/demo
REAL := $(RUNS)/real-short

.DEFAULT_GOAL := help
.PHONY: help install demo real real-short data test lint docs bench clean

help:
	@echo "make install   a virtual environment in .venv with all that is needed"
	@echo "make demo      simulate people, train two small models, and draw the page that compares them"
	@echo "make real      leave one out over real MRI in DATA/ms (DATA=$(DATA))"
	@echo "make test      the tests;  make lint: style and types;  make docs: docs/_build/html"
	@echo "make bench     measure again most of what benchmarks/results holds; each file names its own command"
	@echo "make clean     take away what was built; runs and the environment stay"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(TORCH_FROM) -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[demo,dev,docs,monai]'
	@touch $@

# Eight simulated people, six to learn from and two to be judged on: what a user does with a cohort of their own.
COHORT := --cohort $(DEMO)/cohort/cohort.csv
LEARN := $(COHORT) --cache $(DEMO)/cache --set 'split.test=[0]' --set train.images=4000
DRAWS := --set bridge.images=2000

demo: install
	$(SCANBRIDGE) simulate brain --subjects 8 --size 96 --out $(DEMO)/cohort
	$(SCANBRIDGE) check $(DEMO)/cohort/cohort.csv
	$(SCANBRIDGE) train configs/ct2mri-small.toml $(LEARN) $(DRAWS) --run $(DEMO)/ct2mri
	$(SCANBRIDGE) train configs/regression-small.toml $(LEARN) --run $(DEMO)/regression
	$(SCANBRIDGE) compare $(DEMO)/ct2mri $(DEMO)/regression $(COHORT) --out $(DEMO)
	@echo
	@echo "Open $(DEMO)/report.html in a browser; the translated volumes are in $(DEMO)/translations."

# FLAIR to T1w, each person held out in turn; then CT to PET, two folds of five to learn from and one to be judged on.
STS := --cohort $(DATA)/sts/cohort.csv
PET := $(STS) --cache $(RUNS)/real/cache --set 'task.source="ct"' --set 'task.targets=["pet"]' \
    --set 'grid.spacing=[4.0, 4.0, 4.0]' --set 'split.test=[0]' --set 'split.val=[1]' --set 'split.calibration=[2]'

real: data install
	$(BIN)/python benchmarks/leave_one_out.py --cohort $(DATA)/ms/cohort.csv --runs $(RUNS)/real
	$(SCANBRIDGE) train configs/ct2mri-small.toml $(PET) --run $(RUNS)/real/pet/ct2mri
	$(SCANBRIDGE) train configs/regression-small.toml $(PET) --run $(RUNS)/real/pet/regression
	$(SCANBRIDGE) compare $(RUNS)/real/pet/ct2mri $(RUNS)/real/pet/regression $(STS) --out $(RUNS)/real/pet

# The whole way over real scans in minutes: too little training for a good picture, enough to break what is broken.
real-short: data install
	$(SCANBRIDGE) check $(DATA)/ms/cohort.csv
	$(SCANBRIDGE) check $(DATA)/breast/cohort.csv
	$(SCANBRIDGE) check $(DATA)/stroke/cohort.csv
	$(SCANBRIDGE) check $(DATA)/sts/cohort.csv
	$(SCANBRIDGE) train configs/ct2mri-small.toml --cohort $(DATA)/ms/cohort.csv --run $(REAL)/run \
	    --cache $(REAL)/cache --set 'split.test=["sub-07"]' --set train.images=64 --set bridge.images=32 --set train.checkpoint_every=32
	$(SCANBRIDGE) translate $(REAL)/run $(DATA)/ms/sub-07/sub-07_FLAIR.nii.gz --out $(REAL)/translations
	$(SCANBRIDGE) evaluate $(REAL)/run --cohort $(DATA)/ms/cohort.csv --translations $(REAL)/translations --out $(REAL)

data:
	@test -d $(DATA)/ms || { echo "no cohort in $(DATA)/ms: set DATA, as in 'make $(MAKECMDGOALS) DATA=/where/cohorts/are'"; exit 2; }

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: real
	$(BIN)/python benchmarks/unet.py
	$(BIN)/python benchmarks/cache.py --cohort $(DATA)/ms/cohort.csv --out benchmarks/results
	$(BIN)/python benchmarks/calls.py $(RUNS)/real/*/seed-0/ct2mri-small --cohort $(DATA)/ms/cohort.csv \
	    --cache $(RUNS)/real/cache --out benchmarks/results
	$(BIN)/python benchmarks/leave_one_out.py --cohort $(DATA)/ms/cohort.csv --runs $(RUNS)/real --rows walk --parts sub-07
	$(BIN)/python benchmarks/ista.py $(RUNS)/real/sub-07/seed-0/ct2mri-small-walk \
	    $(RUNS)/real/sub-07/seed-0/ct2mri-small --cohort $(DATA)/ms/cohort.csv \
	    --cache $(RUNS)/real/cache --out benchmarks/results
	$(BIN)/python benchmarks/posterior.py --runs $(RUNS)/posterior --out benchmarks/results
	$(BIN)/python benchmarks/latent_folds.py --cohort $(DATA)/sts/cohort.csv --runs $(RUNS)/pet-folds --results benchmarks/results
	$(BIN)/python benchmarks/wrong_input.py $(RUNS)/pet-folds/*/seed-0/rlbcd-small-rlbcd --data $(DATA) --out benchmarks/results
	$(BIN)/python benchmarks/volume_cost.py $(RUNS)/pet-folds/0/seed-0/*-small-* --cohort $(DATA)/sts/cohort.csv \
	    --cache $(RUNS)/pet-folds/cache --out benchmarks/results
	$(BIN)/python benchmarks/simulated_and_real.py $(DATA)/ms/cohort.csv

clean:
	rm -rf docs/_build dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
