# demo: sets up, transcribes the sample calls, shows each transcript beside its truth
# test: sets up, runs the tests        lint: sets up, checks style and types
PYTHON ?= python3
# vLLM's build: gpu where there is an NVIDIA driver, else cpu.
BUILD ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
UV ?= $(or $(shell command -v uv),.tools/bin/uv)
RUN := .venv/bin

.PHONY: demo test lint setup chromium
setup: .venv/ready

demo: setup
	@rm -rf out/demo
	@$(RUN)/rayscribe transcribe demo/samples/manifest.jsonl --model demo/model --output out/demo || [ $$? -eq 3 ]
	@$(RUN)/rayscribe evaluate out/demo

test: setup chromium
	$(RUN)/python -m pytest

# The page is tested in a browser: one that is here, or Debian's where it may be installed; else those tests skip.
APT := DEBIAN_FRONTEND=noninteractive timeout 300 apt-get -qq
chromium:
	@(command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { [ "$$(id -u)" = 0 ] && $(APT) update && $(APT) install --yes --no-install-recommends chromium; } \
	) >/dev/null 2>&1 || echo "no Chromium: the tests of the page will be skipped"

lint: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

.venv/ready: pyproject.toml | $(UV)
	$(UV) sync --python $(PYTHON) --extra $(BUILD) --extra dev --compile-bytecode
	@touch $@

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv
