# All targets use the virtual environment .venv. `make setup` creates it, as does every target that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BNSMOOTH ?= $(BIN)/bnsmooth
# Further options of the commands in the runs/ rules, for example:
#   make TRAIN="--preset paper" runs/vgg-l1-lr0.1-paper-seed0/ics.parquet
TRAIN ?=
SMOOTHNESS ?=
THEORY ?=
SURFACE ?=
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: setup demo docs docs-serve test test-all torture check bench dist clean norms norms-gpt sharpness paper

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The demo: the whole pipeline on built-in data. Two jobs of one thread each are faster on two cores than one job of two
# threads. One command measures all runs of a problem, because starting Python and torch takes as long as a measurement.
VGG := $(foreach norm,none batch l1,runs/vgg-$(norm)-lr0.1-seed0)
DLN := $(foreach norm,none batch l1,runs/dln-$(norm)-lr1e-06-seed0)
# The slowest figures come first, so that both jobs end at about the same time.
DEMO_FIGURES := $(addprefix demo/,training.png linear-theory.png smoothness.png surface.png landscape.png ics.png \
	activations.png compare.png linear-ics.png linear-training.png)

demo: setup
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 $(DEMO_FIGURES)
	@echo "Tables are in runs/*/, figures in demo/: $(notdir $(DEMO_FIGURES))"

# demo/.vgg-KIND and demo/.dln-KIND record that the tables of all runs are written.
demo/.vgg-smoothness: SETTINGS = --every 100
demo/.vgg-surface: SETTINGS = --points 13
demo/.dln-theory: SETTINGS = --every 250
demo/.vgg-%: $(VGG:=/train.parquet)
	$(BNSMOOTH) $* $(VGG) $(SETTINGS) --force
	@mkdir -p demo && touch $@
demo/.dln-%: $(DLN:=/train.parquet)
	$(BNSMOOTH) $* $(DLN) $(SETTINGS) --force
	@mkdir -p demo && touch $@

demo/training.png: $(VGG:=/train.parquet)
demo/landscape.png: TABLES = $(VGG:=/landscape.parquet)
demo/landscape.png: demo/.vgg-landscape
demo/smoothness.png: TABLES = $(VGG:=/smoothness.parquet)
demo/smoothness.png: demo/.vgg-smoothness
demo/ics.png: TABLES = $(VGG:=/ics.parquet) $(VGG:=/train.parquet)
demo/ics.png: demo/.vgg-ics
demo/activations.png: TABLES = $(VGG:=/activations.parquet)
demo/activations.png: demo/.vgg-activations
demo/surface.png: TABLES = $(VGG:=/surface.parquet)
demo/surface.png: demo/.vgg-surface
demo/linear-training.png: $(DLN:=/train.parquet)
demo/linear-ics.png: TABLES = $(DLN:=/ics.parquet) $(DLN:=/train.parquet)
demo/linear-ics.png: demo/.dln-ics
demo/linear-theory.png: TABLES = $(DLN:=/theory.parquet)
demo/linear-theory.png: demo/.dln-theory
demo/compare.png: demo/compare.parquet
demo/%.png:
	$(BNSMOOTH) plot $(or $(TABLES),$^) -o $@ --force
demo/compare.parquet: demo/.vgg-smoothness
	$(BNSMOOTH) compare $(VGG) -o $@ --force

# The picture in docs/how-to/figure.md.
docs/images/surface.png: demo/surface.png
	cp $< $@

# The tables and figures of docs/norms.md: every norm, trained and measured on the built-in images and on CIFAR-10, as in
# make norms DATA=path/to/cifar10, and five norms in the transformer. Two hours on one core. norms-gpt is the transformer's
# part, which needs no data.
NORMS := none,batch,l1,l2,linf,layer,group:4,instance,weight,rms,dyt:DyT
norms: setup norms-gpt
	@test -e "$(DATA)" || { echo "make norms: give the path of CIFAR-10, as in DATA=path/to/cifar10" >&2; exit 2; }
	PYTHONPATH=docs/examples $(BNSMOOTH) compare --norms $(NORMS) --seeds 0-4 --save-every 100 --measure smoothness -o norms/shapes
	PYTHONPATH=docs/examples $(BNSMOOTH) compare --norms $(NORMS) --seeds 0-2 --steps 600 --save-every 200 --eval-every 200 \
		--data "$(DATA)" --measure smoothness -o norms/cifar
	$(call published,shapes)
	$(call published,cifar)
norms-gpt: setup
	OMP_NUM_THREADS=1 $(BNSMOOTH) compare --problem gpt --norms none,layer,rms,batch,dyt --seeds 0-4 --measure smoothness \
		--every 50 --jobs 2 -o norms/gpt
	OMP_NUM_THREADS=1 $(BNSMOOTH) compare --problem gpt --norms none,layer --lrs 0.001,0.003,0.01,0.03,0.1 --seeds 0-2 --jobs 2 \
		-o norms/gpt-lrs
	$(call published,gpt)
	$(call saved,gpt-lrs)
# Copy the tables of a study in norms/ to docs/norms/; draw them.
saved = mkdir -p docs/norms && \
	$(BIN)/python -c "import bnsmooth_cli as bns; [bns.save_table(bns.read_table(f'norms/$(1)/compare.{a}parquet'), \
		f'docs/norms/$(1).{a}parquet') for a in ('', 'summary.')]"
published = $(saved) && $(BNSMOOTH) plot docs/norms/$(1).parquet -o docs/images/norms-$(1).png --force

# docs/sharpness.md: VGG in train and eval mode, and the transformer's preconditioned sharpness, on the built-in data. Under
# an hour on two cores. Where `make paper SCALE=quarter` has trained VGG on CIFAR-10, it is measured again.
MODES := sharpness/vgg/runs/* --at 0,100,200,300
CIFAR := $(wildcard $(foreach norm,none batch,paper/quarter/vgg/runs/vgg-$(norm)-lr0.1-paper-w0.25-seed*))
sharpness: norms-gpt
	OMP_NUM_THREADS=1 $(BNSMOOTH) compare --norms none,batch --seeds 0-4 --measure smoothness --every 100 --batches 16 --jobs 2 \
		-o sharpness/vgg
	OMP_NUM_THREADS=1 $(BNSMOOTH) smoothness $(MODES) --objective eval -o sharpness/vgg-eval.parquet
	OMP_NUM_THREADS=1 $(BNSMOOTH) smoothness $(MODES) --objective train:8 -o sharpness/vgg-train-8.parquet
	$(if $(CIFAR),OMP_NUM_THREADS=1 $(BNSMOOTH) smoothness $(CIFAR) --at 1000,2000,5000,10000,15000 --batches 16 \
		-o sharpness/cifar.parquet)
	$(BIN)/python -m reproduction.sharpness --gather norms/gpt sharpness
	$(BNSMOOTH) plot docs/sharpness/gpt.parquet -o docs/images/sharpness-gpt.png --force

# docs/reproduction/: the paper's figures and claims. After an interruption, the same command resumes.
#   SCALE=quick    minutes, on the built-in images; the page is written to docs/reproduction/quick/
#   SCALE=quarter  days on two cores: a quarter of VGG's widths, on CIFAR-10
#   SCALE=paper    every setting of the paper; needs a GPU
#   DATA=PATH      where CIFAR-10 is (default: it is downloaded)
#   ONLY=A,B       these studies of the scale, such as dln,dln-slow; dln is always among them
#   STEPS=N        ends runs after N steps
#   JOBS=N         runs at a time
#   NOTE=TEXT      a note about the data, for the page
# `python -m reproduction SCALE --finished` writes the page of the runs that are finished. Except for quick, docs/findings.md
# is written as well.
SCALE ?= quick
JOBS ?= 2
paper: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduction $(SCALE) --jobs $(JOBS) $(if $(ONLY),--only "$(ONLY)") $(if $(STEPS),--steps $(STEPS)) $(if $(DATA),--data "$(DATA)") $(if $(NOTE),--note "$(NOTE)")
	$(if $(filter-out quick,$(SCALE)),$(BIN)/python -m reproduction findings)

# Rules for the tables of any run, such as runs/vgg-l1-lr0.1-seed0/ics.parquet. Problem, norm, learning rate and seed are
# read from the run's name; what stands between the learning rate and the seed has to be in TRAIN.
options = $(shell echo '$*' | sed -E 's/^([a-z]+)-(.+)-lr([0-9.]+(e[-+]?[0-9]+)?)(-.+)?-seed([0-9]+)$$/--problem \1 --norm \2 --lr \3 --seed \6/; s/--norm (lp|group)([0-9])/--norm \1:\2/')
runs/%/train.parquet:
	$(BNSMOOTH) train $(options) $(TRAIN) -o runs/$*
runs/%/landscape.parquet: runs/%/train.parquet
	$(BNSMOOTH) landscape runs/$* --force
runs/%/smoothness.parquet: runs/%/train.parquet
	$(BNSMOOTH) smoothness runs/$* $(SMOOTHNESS) --force
runs/%/surface.parquet: runs/%/train.parquet
	$(BNSMOOTH) surface runs/$* $(SURFACE) --force
runs/%/ics.parquet: runs/%/train.parquet
	$(BNSMOOTH) ics runs/$* --force
runs/%/activations.parquet: runs/%/train.parquet
	$(BNSMOOTH) activations runs/$* --force
runs/%/theory.parquet: runs/%/train.parquet
	$(BNSMOOTH) theory runs/$* $(THEORY) --force

# The fast tests cover every command, norm, problem and measurement; tests marked slow are left out. About five minutes.
# With worksteal, a process runs whole files where possible, so that the tests in a file share their small runs.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Every test. About three quarters of an hour.
test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Many attempts to break every command by kills, damaged files and odd options, and measurements by odd networks. Takes three
# hours, resumes after an interruption, and prints a table at the end (docs/reliability.md).
torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/torture.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Time bnsmooth against plain PyTorch and write docs/speed.md. About six minutes. `python -m benchmarks ROW` runs one row.
bench: setup
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks -o docs/speed.json

# The documentation as a site in site/; docs-serve shows it at http://127.0.0.1:8000 while pages are edited. Links between
# pages are checked.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: setup
	$(BIN)/mkdocs build --strict
docs-serve: setup
	$(BIN)/mkdocs serve --strict

# The source distribution and the wheel in dist/, checked as PyPI does.
dist: setup
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf demo dist site norms runs sharpness torture build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
