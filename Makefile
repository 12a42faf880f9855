# Needs Python 3.11+, make and a package registry; nothing else.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell $(p) -c 'import ensurepip, sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# With what the tests of the studio and the REST interface need.
LOCKS := requirements.lock requirements-serve-test.lock
RAY_STAMP := $(VENV)/.installed-ray

export HF_HUB_OFFLINE ?= 1

.PHONY: install demo dist test test-parity test-ray test-browser chromium lint format no-torchvision check miniature clean

install: $(STAMP)

$(STAMP): $(LOCKS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(LOCKS))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(STAMP)

demo: install
	TRANSFORMERS_VERBOSITY=error $(BIN)/python examples/demo.py outputs/demo.png

# A wheel in dist/, for pip install dist/realcustom-*.whl.
dist: install
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore tests/distributed

# On a Ray cluster of two CPUs that it starts itself; Ray is an extra, installed here.
test-ray: $(RAY_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/data/test_prepare.py::test_ray_writes_what_one_process_writes tests/distributed

$(RAY_STAMP): $(STAMP) requirements-ray.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.lock
	@touch $(RAY_STAMP)

test-parity: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/parity

# The studio in a real browser; writes screenshots to outputs/.
test-browser: install chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -m browser tests/serving

chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { echo "Chromium is needed: apt-get install chromium"; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; }

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torchvision built for another torch breaks transformers and diffusers on import, and some packages pull it in.
no-torchvision: install
	@! grep -qi '^torchvision' requirements*.lock || { echo "torchvision is pinned in a lock; it must stay out."; exit 1; }
	@! $(BIN)/python -m pip show --quiet torchvision 2>/dev/null || { echo "torchvision is installed; it must stay out."; exit 1; }

check: lint no-torchvision test

# From nothing to shipped weights; interrupted, it goes on where it was. Needs the cut-outs: REALCUSTOM_SUBJECTS=FOLDER.
miniature: install
	$(BIN)/python recipes/miniature.py "$${REALCUSTOM_SUBJECTS:-subjects}"

clean:
	rm -rf $(VENV) build dist outputs .pytest_cache .ruff_cache
