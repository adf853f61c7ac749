# Every target does everything on a machine that has only Python (3.11 or later) and make: creates the environment
# in .venv, installs, runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of `make endurance`'s soak.
MINUTES ?= 60

# Modules are compiled as they are first imported, and kept (some machines switch keeping off): those of a run at the
# end of the installation, so that its processes find them; with all of them compiled, installing would take longer.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test chaos paper test-cluster fuzz endurance lint install clean

demo: install
	$(BIN)/agrekd run jobs/colored_digits.yaml

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup --max-worker-restart=0 -m "not chaos and not paper and not hosts and not fuzz"

chaos: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup --max-worker-restart=0 -m chaos

paper: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup --max-worker-restart=0 -m paper

test-cluster: install
	$(BIN)/python -m pytest -m hosts tests/test_hosts.py

fuzz: install
	$(BIN)/python -m pytest -n 2 -m fuzz tests/fuzz
	$(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile=searching

endurance: install
	$(BIN)/python -m tests.endurance faults
	$(BIN)/python -m tests.endurance soak --minutes $(MINUTES)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the package and what it needs into $(VENV); this takes some minutes."
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -c 'import agrekd_ray.api, agrekd_ray.experiment.ray_engine, agrekd_ray.report.plots, \
		mlflow.pytorch, mlflow.store.tracking.sqlalchemy_store, ray.train.torch, scipy.stats, torch._dynamo'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
