# Two commands do everything on a fresh machine with Python and make: `make course` and `make test`.
# Two more are for the published pages, and need Node.js with npm, and Chromium: `make site` and `make test-site`.
PYTHON ?= python3
VENV   ?= .venv
SCALE  ?= laptop
DATA   ?=
JOBS   ?= 2
PYTEST_ARGS ?=

bin    := $(VENV)/bin
# one stamp for each content of these files (nbdev-export rewrites pyproject.toml, so its date says nothing)
ready  := $(VENV)/.installed-$(shell cat settings.ini setup.py pyproject.toml | cksum | cut -d ' ' -f 1)
run    := $(bin)/python tools/run_notebooks.py
data   := $(if $(DATA),--data "$(DATA)",)

.PHONY: help course test lab site site-assets test-site outputs export clean-notebooks readme cards dist clean
help:
	@echo "make course                  run every chapter, and keep notebooks, pages and pictures in course/"
	@echo "make course SCALE=gpu        the same at the size for a GPU;  DATA=folder  on real cells"
	@echo "make test                    the tests: every chapter at smoke scale, the plain tests, all files in step"
	@echo "make test JOBS=4             the same with four processes on one thread each (here: $(JOBS))"
	@echo "make site                    the published pages in _docs/ (needs npm);  make test-site  them in Chromium"
	@echo "make lab                     open the chapters in JupyterLab"
	@echo "make export | readme         the package from the notebooks | README.md from nbs/index.ipynb"
	@echo "make outputs DATA=folder     run the notebooks in place, to commit what they show"
	@echo "make cards                   the pictures on the home page, cut anew from the notebooks"
	@echo "make dist | clean            sdist and wheel in dist/ | remove what was made"
	@echo "PYTHON=python3.12 chooses the Python, VENV=folder the environment (here: $(PYTHON), $(VENV))"

# The environment: made once, made anew when what the package needs has changed
$(ready):
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.10 or later, or name yours with make PYTHON=..."; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v < (3, 10) and sys.exit("cell_diffusion needs Python 3.10 or later; this is %d.%d. Name a newer one with make PYTHON=python3.12" % v[:2])'
	@test -x "$(bin)/python" || "$(PYTHON)" -m venv "$(VENV)" || { echo "Python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Installing into $(VENV): a few minutes and up to 7 GB the first time, most of it PyTorch"
	"$(bin)/python" -m pip install --disable-pip-version-check -e '.[dev,site,web]'
	@rm -f "$(VENV)"/.installed*; touch "$@"

course: $(ready)
	@$(run) --scale $(SCALE) $(data) --out course

test: $(ready)
	OMP_NUM_THREADS=1 "$(bin)/python" -m pytest tests --ignore tests/site -v -n $(JOBS) --dist loadgroup --durations=0 --durations-min=2 $(PYTEST_ARGS)

lab: $(ready)
	@"$(bin)/python" -c 'import jupyterlab' 2>/dev/null || { echo "JupyterLab is not installed: $(bin)/pip install jupyterlab"; exit 1; }
	cd nbs && "$(abspath $(bin))/jupyter" lab

# The pages as they are published, from the outputs that the notebooks hold; nbdev-docs with Quarto needs site-assets before it
site: $(ready)
	@OMP_NUM_THREADS=1 "$(bin)/python" site/make_site.py

site-assets: $(ready)
	@"$(bin)/python" site/make_site.py --assets

test-site: $(ready)
	"$(bin)/python" -m pytest tests/site -v --durations=5 $(PYTEST_ARGS)

export: $(ready)
	PATH="$(abspath $(bin)):$$PATH" nbdev-export

clean-notebooks: $(ready)
	PATH="$(abspath $(bin)):$$PATH" nbdev-clean

readme: $(ready)
	"$(bin)/python" tools/make_readme.py

cards: $(ready)
	"$(bin)/python" tools/make_cards.py

outputs: $(ready)
	@$(run) --scale $(SCALE) $(data) --inplace
	"$(bin)/python" tools/make_readme.py

dist: $(ready)
	rm -rf dist
	"$(bin)/python" -m build

clean:
	rm -rf course build dist *.egg-info .pytest_cache _proc _docs _docs_screenshots nbs/sidebar.yml nbs/katex nbs/browser/ort nbs/browser/model site/node_modules
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
