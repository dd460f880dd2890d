# The project's commands. Needs make and Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/recap
REQUIREMENTS := requirements.txt requirements-torchrec.txt requirements-serving.txt requirements-dev.txt constraints.txt

# make setup CUDA=1 (not tested) installs the CUDA build of fbgemm instead of the CPU build.
TORCHREC := sed '$(if $(CUDA),s/fbgemm-gpu-cpu/fbgemm-gpu/)' requirements-torchrec.txt
STAMP := $(VENV)/installed$(if $(CUDA),-cuda)

# Two processes on two cores, one thread each. torchrun would choose the same, with a warning.
export OMP_NUM_THREADS ?= 1

.PHONY: setup train test test-faults lint clean

setup: $(STAMP)

$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than Python 3.11; say which one to use: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "error: $(PYTHON) lacks venv; install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-serving.txt \
	  -r requirements-dev.txt -c constraints.txt
	$(TORCHREC) > $(VENV)/torchrec.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r $(VENV)/torchrec.txt
	@rm -f $(VENV)/installed*
	@touch $@

$(DATA):
	$(BIN)/python -m projects.home.recap.tools.generate --out $@

train: setup
	@test -d $(DATA) || $(MAKE) --no-print-directory $(DATA)
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m projects.home.recap.main --config projects/home/recap/configs/local.yaml

# Tests of one file share what they start, so that a file stays in one process.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not faults"

test-faults: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

clean:
	rm -rf $(VENV) $(DATA) .pytest_cache .mypy_cache .ruff_cache  # not runs/: those are yours
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
