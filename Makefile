# Every command of the project. Each target makes the virtual environment first if it is missing.
#   make train      train on the embedded benchmark, then score and draw
#   make test       run all tests
#   make evaluate   score that training's run again, 1- and 5-shot
#   make book       build the book into _build/html
#   make lint       check the style
#   make clean      remove what was built (not the environment, not the data)

PYTHON ?= python3
# What pip is asked for as PyTorch. On Linux the default brings several GB of CUDA; a laptop without a GPU says
#   make test TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch torchvision
# Options of hsnet.train, such as OPTIONS="--fold 1"
OPTIONS ?=
RUN ?= emoji-fold0-efficientnet_lite0

BIN := .venv/bin
READY := .venv/ready

.PHONY: train test evaluate book lint clean

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --disable-pip-version-check -e ".[all]"
	touch $@

train: $(READY)
	$(BIN)/python -m hsnet.train $(OPTIONS)

test: $(READY)
	$(BIN)/python -m pytest

evaluate: $(READY)
	$(BIN)/python -m hsnet.evaluate $(RUN) --shot 1
	$(BIN)/python -m hsnet.evaluate $(RUN) --shot 5
	$(BIN)/python -m hsnet.evaluate $(RUN) --controls

book: $(READY)
	$(BIN)/jupyter-book build . --path-output . --all -n -W --keep-going

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z '*.ipynb' | xargs -0 -r $(BIN)/nbstripout --verify

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
