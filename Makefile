# Each target sets up .venv first.
#   demo          transcribes the sample calls and shows each transcript beside its reference
#   check         lint, and the tests that need neither Ray, an engine, S3 nor a browser
#   test          all tests but the long ones
#   test-long     the long ones: runs of minutes on a cluster
#   lint          style, types, imports, dependencies
#   bench-quick   ratios of the main benches, in three minutes
#   lock          the exact versions that the images install: k8s/requirements-*.txt
PYTHON ?= python3
# vLLM's build: gpu where there is an NVIDIA driver, else cpu.
BUILD ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
UV ?= $(or $(shell command -v uv),.tools/bin/uv)
RUN := .venv/bin

.PHONY: demo check test test-long lint lock setup chromium redis-server bench-quick
setup: .venv/ready

demo: setup
	@rm -rf out/demo
	@$(RUN)/rayscribe transcribe demo/samples/manifest.jsonl --model demo/model --output out/demo || [ $$? -eq 3 ]
	@$(RUN)/rayscribe evaluate out/demo

# Markers of the tests that have the machine to themselves.
ALONE := engine or ray or s3 or browser or slow
FAST_TESTS := $(RUN)/python -m pytest -n auto --dist worksteal -m "not ($(ALONE))"

check: lint
	$(FAST_TESTS)

test: setup chromium
	$(FAST_TESTS)
	$(RUN)/python -m pytest -m "($(ALONE)) and not long"

test-long: setup redis-server
	$(RUN)/python -m pytest -m long

bench-quick: setup
	@$(RUN)/python -m bench.quick

# The page is tested in a browser, a lost head with a Redis: those that are here, or Debian's where they may be installed;
# else these tests skip.
APT := DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq
INSTALL = { [ "$$(id -u)" = 0 ] && $(APT) update && $(APT) install --yes --no-install-recommends $@; }
chromium:
	@(command -v chromium || command -v chromium-browser || command -v google-chrome || $(INSTALL)) >/dev/null 2>&1 \
	|| echo "no Chromium: the tests of the page will be skipped"

redis-server:
	@(command -v redis-server || $(INSTALL)) >/dev/null 2>&1 || echo "no Redis: the test of a lost head will be skipped"

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports --no-logo
	$(RUN)/deptry .
	$(RUN)/deptry . --extend-exclude "tests|testing|bench|demo" --optional-dependencies-dev-groups dev --ignore DEP002

lock: | $(UV)
	$(UV) lock --upgrade --python $(PYTHON)
	for build in cpu gpu; do $(UV) export --frozen --quiet --extra $$build --no-emit-project --no-annotate --no-header \
		--output-file k8s/requirements-$$build.txt || exit; done
	! grep --extended-regexp "https?://" k8s/requirements-*.txt  # an index's address would tie the images to it

.venv/ready: pyproject.toml | $(UV)
	$(UV) sync --python $(PYTHON) --extra $(BUILD) --extra dev --compile-bytecode
	@touch $@

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv
