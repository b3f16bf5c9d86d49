# Every command of the project. Each target makes the virtual environment first if it is missing.
#   make train      train on the embedded benchmark, then score and draw
#   make test       run all tests, and every notebook of the book
#   make reliability   kill trainings, damage files, give bad inputs: count what is withstood
#   make evaluate   score that training's run again, 1- and 5-shot
#   make book       build the book into _build/html
#   make pages      look at the built book in a browser (needs Chromium)
#   make lint       check the style of code and texts
#   make clean      remove what was built (not the environment, not the data)

PYTHON ?= python3
# What pip is asked for as PyTorch. On Linux the default brings several GB of CUDA; a laptop without a GPU says
#   make test TORCH="torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch torchvision
# Options of hsnet.train or tests/reliability.py, such as OPTIONS="--fold 1"
OPTIONS ?=
RUN ?= emoji-fold0-efficientnet_lite0

BIN := .venv/bin
READY := .venv/ready
EXECUTED := .executed/stamp
HTML := _build/html/index.html
BOOK := _config.yml _toc.yml $(shell find book -type f -not -path '*/.*')
# What the notebooks compute with.
SOURCES := $(shell find hsnet -name '*.py') \
	$(wildcard data/*.json data/emoji/*.csv data/paper/* data/speed/* tests/golden/* \
	data/runs/*.md data/runs/*/*.json data/runs/*/*.jsonl data/runs/*/*.safetensors)

.PHONY: train test reliability evaluate book pages lint clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --disable-pip-version-check -e ".[all]"
	touch $@

train: $(READY)
	$(BIN)/python -m hsnet.train $(OPTIONS)

test: $(READY)
	$(BIN)/python -m pytest
	$(MAKE) $(EXECUTED)

reliability: $(READY)
	PYTHONPATH=book $(BIN)/python tests/reliability.py $(OPTIONS)

evaluate: $(READY)
	$(BIN)/python -m hsnet.evaluate $(RUN) --shot 1
	$(BIN)/python -m hsnet.evaluate $(RUN) --shot 5
	PYTHONPATH=book $(BIN)/python -m kit.controls $(RUN)

# Each notebook is executed once, in a copy of the book's sources, and an error in one fails here; the pages are built
# from the copies. A notebook that has changed runs anew; when the library, its data or the environment has, all do. What
# they draw, and what the page that computes in the browser loads, is prepared first.
CHANGED = $(if $(filter-out $(BOOK),$?),$(BOOK),$?)
NOTEBOOKS = $(addprefix $(dir $@),$(filter %.ipynb,$(CHANGED)))
$(EXECUTED): $(READY) $(SOURCES) $(BOOK)
	mkdir -p $(dir $@) && touch $(dir $@)begun  # what is edited from here on is newer than the stamp
	for file in $(CHANGED); do mkdir -p $(dir $@)$$(dirname $$file) && cp $$file $(dir $@)$$file || exit 1; done
	$(BIN)/python -c "import sys; sys.path.insert(0, 'book'); from kit.pages import emoji; emoji()"
	PYTHONPATH=book $(BIN)/python -m kit.browser --out $(dir $@)book/browser/try
	$(if $(NOTEBOOKS),OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake --overwrite --nbmake-timeout=600 -n 2 $(NOTEBOOKS))
	touch -r $(dir $@)begun $@

$(HTML): $(EXECUTED)
	$(BIN)/jupyter-book build .executed --path-output . --all -n -W --keep-going

book: $(HTML)
	@echo "the book: file://$(CURDIR)/$(HTML)"

# Looks at the built pages in Chromium; SCREENSHOTS=FOLDER keeps pictures of all of them.
SCREENSHOTS ?=
pages: book
	$(BIN)/pip install --disable-pip-version-check --quiet playwright
	HSNET_PAGES=_build/html HSNET_SCREENSHOTS=$(SCREENSHOTS) $(BIN)/python -m pytest tests/test_pages.py tests/test_browser.py -n 0 -rs

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z '*.ipynb' | xargs -0 -r $(BIN)/nbstripout --verify
	PYTHONPATH=book $(BIN)/python -m kit.words

clean:
	rm -rf _build .executed .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
