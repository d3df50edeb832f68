# The doors of the course. Needs git, make and Python 3.11 or newer; everything else goes into .venv
# (about 1 GB) and into LABKIT_HOME (engines and models; default: the user's cache folder).

PYTHON ?= python3
BUDGET ?= short
MODE ?= auto
OUT ?= out

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
SETUP := $(VENV)/.set-up

.PHONY: help demo lab run test engines check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     first look: the headline notebook on simulated engines, no download beyond the set-up"
	@echo "make run      run the tutorial without a browser (BUDGET=smoke|short|normal|long, default short;"
	@echo "              MODE=live|simulated|recorded, default auto: live if the engines are installed)"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make engines  install Ollama, vLLM, the model, nginx and LiteLLM (large; asked for once)"
	@echo "make test     unit tests"
	@echo "make check    format, lint, types, notebook rules"
	@echo "make clean    remove what was built here; measurements, engines and models stay"

# uv installs in seconds what takes pip a minute. Where only pip knows the way to the packages
# (a mirror in pip.conf), pip does it.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(1)]' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'

# What a notebook needs to run; the rest of the set-up can wait until it is asked for.
$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "labkit needs Python 3.11 or newer, and $(PYTHON) is not; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "set-up: Python environment in $(VENV) (about 1 GB, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(call install,lab)
	@touch $@

$(SETUP): $(BASE)
	@$(call install,lab$(comma)engines$(comma)dev)
	@touch $@

comma := ,

demo: $(BASE)
	@$(BIN)/labkit run notebooks/05_the_gap.ipynb --mode simulated --budget short --out $(OUT)
	@echo "see $(OUT)/05_the_gap.html; make lab opens the notebook, make engines makes it real"

# --allow-root: containers and class machines often have no other user; the server listens on loopback only.
lab: $(SETUP)
	@JUPYTER_CONFIG_PATH=$(CURDIR)/notebooks/.jupyter PYTHONSTARTUP=$(CURDIR)/notebooks/.jupyter/startup.py \
	  $(BIN)/jupyter lab --ip=127.0.0.1 --allow-root \
	  --LabApp.news_url= --LabApp.default_url=/lab/tree/notebooks

run: $(SETUP)
	@$(BIN)/labkit run --mode $(MODE) --budget $(BUDGET) --out $(OUT)

engines: $(SETUP)
	@$(BIN)/labkit engines install --yes
	@$(BIN)/labkit models get smollm2:135m --yes

test: $(SETUP)
	@$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not engines and not browser"

check: $(SETUP)
	@ci/check

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
