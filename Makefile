# make train   set up, and run the main job
# make test    set up, and run the whole test gate, on every core a share of the tests (18 minutes on two)
# make bench   set up, and time the loop against a hand-written one, Ignite's, Lightning's and Keras's, every constraint,
#              penalty and gradient editor against the loop that people write by hand, weight histograms against Ignite's,
#              and how all that grows, into docs/speed.md (half an hour, on a machine that does nothing else)
# make measure train every script with its plugins and without, over five seeds, into docs/results.md (three quarters of an
#              hour)
# make durability  set up, and kill, damage, fill the disk, fuzz, and resume from everywhere, each with a figure at its end
#              (a quarter of an hour)
# make distributed  set up, and compare every plugin on several processes with one, and count what it sends, into
#              docs/distributed.md (a quarter of an hour)
# make outside set up, and install a package of somebody else's beside the built wheel in a new virtual environment
# make ignite  set up, and run Ignite's own engine tests with the Trainer's engine
# make browser look at a run's pages of TensorBoard in headless Chromium (Debian's package chromium), into pictures/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test bench measure durability distributed outside ignite browser clean

train: $(READY)
	$(BIN)/python scripts/train_digits.py

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,bench]"
	$(BIN)/python -W ignore tests/benchmarks/bench_loop.py --output runs/benchmarks/loop.json
	$(BIN)/python -W ignore tests/benchmarks/bench_plugins.py --output runs/benchmarks/plugins.json
	$(BIN)/python -W ignore tests/benchmarks/bench_plugins.py --without-fast --output runs/benchmarks/plugins.json
	$(BIN)/python -W ignore tests/benchmarks/bench_watching.py --output runs/benchmarks/watching.json
	$(BIN)/python -W ignore tests/benchmarks/bench_growth.py --output runs/benchmarks/growth.json
	$(BIN)/python tests/benchmarks/speed_page.py

measure: $(READY)
	$(BIN)/python -W ignore tests/benchmarks/measure_scripts.py

durability: $(READY)
	$(BIN)/python tests/durability/everywhere.py
	$(BIN)/python tests/durability/every_plugin.py
	$(BIN)/python tests/durability/kills.py
	$(BIN)/python tests/durability/broken_disk.py
	$(BIN)/python tests/durability/damage.py
	$(BIN)/python tests/durability/fuzz.py
	$(BIN)/python tests/durability/soak.py

distributed: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/distributed/agreement.py --page
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/distributed/sent.py --page

outside: $(READY)
	$(BIN)/python tests/packaging/outside.py

ignite: $(READY)
	$(BIN)/python tests/ignite_engine/ignites_tests.py

# Written last, so an interrupted set-up starts again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

browser: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[browser]"
	$(BIN)/pytest -m browser tests/browser

clean:
	rm -rf $(VENV)
