# Everything goes through a virtual environment in .venv; `make demo` and `make test` need nothing before them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BNSMOOTH ?= $(BIN)/bnsmooth
# More of train's options for the runs/ rules, as in: make TRAIN="--preset paper" runs/vgg-l1-lr0.1-seed0/ics.parquet
TRAIN ?=
# More options of the three that take long, as in THEORY="--at 0,100".
SMOOTHNESS ?=
THEORY ?=
SURFACE ?=
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: setup demo test test-all torture check bench clean norms paper

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The whole pipeline on built-in data. Two jobs of one thread each use two cores better than one job of two.
VGG := $(foreach norm,none batch l1,runs/vgg-$(norm)-lr0.1-seed0)
DLN := $(foreach norm,none batch l1,runs/dln-$(norm)-lr1e-06-seed0)
DEMO_FIGURES := $(addprefix demo/,training.png landscape.png smoothness.png ics.png activations.png \
	surface.png linear-training.png linear-ics.png linear-theory.png compare.png)

demo: setup
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 SMOOTHNESS="--every 100" THEORY="--every 250" SURFACE="--points 13" $(DEMO_FIGURES)
	@echo "Tables are in runs/*/, figures in demo/: $(notdir $(DEMO_FIGURES))"

demo/training.png: $(VGG:=/train.parquet)
demo/landscape.png: $(VGG:=/landscape.parquet)
demo/smoothness.png: $(VGG:=/smoothness.parquet)
demo/ics.png: $(VGG:=/ics.parquet) $(VGG:=/train.parquet)
demo/activations.png: $(VGG:=/activations.parquet)
demo/surface.png: $(VGG:=/surface.parquet)
demo/linear-training.png: $(DLN:=/train.parquet)
demo/linear-ics.png: $(DLN:=/ics.parquet) $(DLN:=/train.parquet)
demo/linear-theory.png: $(DLN:=/theory.parquet)
demo/compare.png: demo/compare.parquet
demo/%.png:
	$(BNSMOOTH) plot $^ -o $@
demo/compare.parquet: $(VGG:=/train.parquet) $(VGG:=/smoothness.parquet)
	$(BNSMOOTH) compare $(VGG) -o $@

# The README's picture that is none of the paper's.
docs/images/surface.png: demo/surface.png
	cp $< $@

# docs/norms.md: every norm, trained and measured on the built-in images and on CIFAR-10 (make norms DATA=path/to/cifar10;
# an hour and a half on one core).
NORMS := none,batch,l1,l2,linf,layer,group:4,instance,weight,rms,dyt:DyT
norms: setup
	@test -e "$(DATA)" || { echo "make norms: say where CIFAR-10 is, DATA=path/to/cifar10" >&2; exit 2; }
	PYTHONPATH=docs/examples $(BNSMOOTH) compare --norms $(NORMS) --seeds 0-4 --save-every 100 --measure smoothness -o norms/shapes
	PYTHONPATH=docs/examples $(BNSMOOTH) compare --norms $(NORMS) --seeds 0-2 --steps 600 --save-every 200 --eval-every 200 \
		--data "$(DATA)" --measure smoothness -o norms/cifar
	mkdir -p docs/norms
	for data in shapes cifar; do \
		$(BIN)/python -c "import bnsmooth_cli as bns; [bns.save_table(bns.read_table(f'norms/$$data/compare.{a}parquet'), \
			f'docs/norms/$$data.{a}parquet') for a in ('', 'summary.')]"; \
		$(BNSMOOTH) plot docs/norms/$$data.parquet -o docs/images/norms-$$data.png; done

# docs/reproduction/: every figure and claim of the paper. SCALE=quick takes minutes, on the built-in images, and leaves its
# page in docs/reproduction/quick/; quarter takes two hours on two cores, with a quarter of the channels, on
# DATA=path/to/cifar10 (else it is downloaded); paper has every setting of the paper's, and wants a GPU. STEPS=N ends runs
# earlier, NOTE says of the data what a reader has to know, JOBS runs so many at a time. The same command goes on.
SCALE ?= quick
JOBS ?= 2
paper: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m reproduction $(SCALE) --jobs $(JOBS) $(if $(STEPS),--steps $(STEPS)) $(if $(DATA),--data "$(DATA)") $(if $(NOTE),--note "$(NOTE)")

# A run's tables, each made where it is missing: the run's name says its options.
options = $(shell echo '$*' | sed -E 's/^([a-z]+)-(.+)-lr([^s]+)-seed([0-9]+)$$/--problem \1 --norm \2 --lr \3 --seed \4/; s/--norm (lp|group)([0-9])/--norm \1:\2/')
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

# The fast tests: every command, norm, problem and measurement, without the tests marked slow. About four minutes.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# Every test. About twelve minutes.
test-all: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Every way to break it that we know, many times: an hour and a half, resumable; ends in a table (docs/reliability.md).
torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/torture.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Every speed against plain PyTorch, about six minutes; docs/speed.md is what it prints. A row alone:
# python -m benchmarks ROW.
bench: setup
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks -o docs/speed.json

clean:
	rm -rf demo norms runs torture build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
