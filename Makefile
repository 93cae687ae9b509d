# make demo: install, run the pipeline and the default grid on the built-in dataset, and print the results and the path of the report.
# make paper: install, copy the lists of grid/paper.yaml to params.yaml, and run that grid with the encoder of params.yaml.
# make test: install, and run all checks and tests except the slow ones. make test-all also runs the slow tests.
# make faults: disturb every stage by kills, full disks, little memory and jumping clocks; run it again; compare every file.
# make fuzz: read 10,000 damaged or hostile inputs.
# make doctor: install, and check whether this machine can run the selected run.
PYTHON ?= python3
VENV := .venv
# DVC starts the `python` on the path, which must be that of the environment.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

FAULTS ?= --random 100
.PHONY: demo paper test test-all faults fuzz check doctor install clean

demo: install
	$(VENV)/bin/dvc repro grid/dvc.yaml
	$(VENV)/bin/dvc repro
	@echo
	@cat metrics/tables/leaderboard.txt
	@echo
	@echo "Decision: metrics/decision.md"
	@echo "Report:   metrics/report.html"
	@echo "Figures:  metrics/figures/"
	@echo "Next:     source $(VENV)/bin/activate; dvc exp run evaluate -S adapter=spectran -S dim=64; dvc metrics diff"

paper: install
	$(VENV)/bin/python -m stages.grid --lists grid/paper.yaml
	@echo "Report:  metrics/report.html"

test: check
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadgroup -m "not slow"

test-all: check
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n 2 --dist loadgroup

faults: install
	$(VENV)/bin/python -m tests.faults.kills $(FAULTS)

fuzz: install
	POLARS_MAX_THREADS=1 $(VENV)/bin/python -m tests.faults.fuzz $(FUZZ)

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	MYPY_NUM_WORKERS=2 $(VENV)/bin/mypy
	$(VENV)/bin/python -m stages.doctor --secrets

doctor: install
	@$(VENV)/bin/python -m stages.doctor

install: $(VENV)/installed

# pip would compile 22,000 modules on one core, which takes half of the installation; compileall does it on all cores, without the
# tests of packages and the models of transformers, of which nearly none is imported. Templates do not compile, which is no fault.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, found {v[0]}.{v[1]}; name one: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt '.[dev]'
	@$(VENV)/bin/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/' $(VENV)/lib || true
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
