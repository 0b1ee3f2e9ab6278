# Two commands do everything on a fresh machine with Python and make: `make course` and
# `make test`. The published pages, `make site` and `make test-site`, need Node.js with
# npm, and Chromium; Firefox is tested too where it is installed.
PYTHON ?= python3
VENV   ?= .venv
SCALE  ?= laptop
DATA   ?=
JOBS   ?= 2
PYTEST_ARGS ?=
# Versions that are known to work; CONSTRAINTS= takes the newest ones
CONSTRAINTS ?= constraints.txt

bin    := $(VENV)/bin
# One stamp for each content of these files. Their dates say nothing: nbdev-export
# rewrites pyproject.toml.
inputs := settings.ini setup.py pyproject.toml $(CONSTRAINTS)
ready  := $(VENV)/.installed-$(shell cat $(inputs) | cksum | cut -d ' ' -f 1)
run    := $(bin)/python tools/run_notebooks.py
data   := $(if $(DATA),--data "$(DATA)",)
tools  := PATH="$(abspath $(bin)):$$PATH"
install := "$(bin)/python" -m pip install --disable-pip-version-check \
           $(addprefix -c ,$(CONSTRAINTS)) -e '.[dev,site,web]'
pytest := OMP_NUM_THREADS=1 "$(bin)/python" -m pytest tests --ignore tests/site -n $(JOBS)
# Coverage, where Python can measure it at hardly any cost: from 3.12. Chapters, which
# run in kernels, are not measured.
can_monitor = $(shell "$(bin)/python" -c 'import sys; sys.monitoring; print(1)' 2>/dev/null)
cover  = $(if $(can_monitor),--cov=cell_diffusion --cov-report=term)

.PHONY: help course test test-fast lint lab site test-site outputs export student
.PHONY: clean-notebooks readme cards home minutes dist clean constraints
help:
	@echo "make course                run every chapter; notebooks, pages, pictures in course/"
	@echo "make course SCALE=gpu      the same for a GPU;  DATA=folder  on real cells"
	@echo "make test                  all tests, and every chapter at smoke scale"
	@echo "make test-fast             the tests without the slow ones: about a minute"
	@echo "make test JOBS=4           the same in four processes of one thread (here: $(JOBS))"
	@echo "make lint                  ruff, and the style that ruff has no rule for"
	@echo "make site                  the published pages in _docs/ (needs npm)"
	@echo "make test-site             the pages in Chromium, and in Firefox where there is one"
	@echo "make student               the chapters to hand out, without solutions, in handout/"
	@echo "make lab                   open the chapters in JupyterLab"
	@echo "make export | readme       the package from the notebooks | README.md from index.ipynb"
	@echo "make outputs DATA=folder   run the notebooks in place, to commit what they show"
	@echo "make cards                 the pictures on the home page, cut from the notebooks"
	@echo "make home DATA=folder      cells that form, and those of its game, from shipped weights"
	@echo "make minutes               how long each chapter takes to read, in its table"
	@echo "make constraints           constraints.txt from this environment, after make test"
	@echo "make dist | clean          sdist and wheel in dist/ | remove what was made"
	@echo "PYTHON=python3.12 chooses the Python, VENV=folder the environment"
	@echo "(here: $(PYTHON), $(VENV)); CONSTRAINTS= installs the newest versions"

# The environment: made once, and again when what the package needs has changed
define no_python
There is no '$(PYTHON)': install Python 3.10 or later, or name yours: make PYTHON=...
endef
define no_venv
Python cannot make an environment (Debian and Ubuntu: apt install python3-venv)
endef
define old_python
import sys
v = sys.version_info
if v < (3, 10):
    sys.exit('cell_diffusion needs Python 3.10 or later; this is %d.%d. '
             'Name a newer one with make PYTHON=python3.12' % v[:2])
endef
export old_python

$(ready):
	@command -v "$(PYTHON)" >/dev/null || { echo "$(no_python)"; exit 1; }
	@"$(PYTHON)" -c "$$old_python"
	@test -x "$(bin)/python" || "$(PYTHON)" -m venv "$(VENV)" \
		|| { echo "$(no_venv)"; exit 1; }
	@echo "Installing into $(VENV): a few minutes and up to 7 GB the first time,"
	@echo "most of it PyTorch"
	@$(install) || { echo "That failed. Once more, in case it was the network"; \
		sleep 10; $(install); }
	@rm -f "$(VENV)"/.installed*; touch "$@"

course: $(ready)
	@$(run) --scale $(SCALE) $(data) --jobs $(JOBS) --out course

test: $(ready)
	$(pytest) -v --durations=0 --durations-min=2 $(cover) $(PYTEST_ARGS)

test-fast: $(ready)
	$(pytest) -q -m "not slow" $(PYTEST_ARGS)

lint: $(ready)
	"$(bin)/python" -m pytest tests/test_style.py -q $(PYTEST_ARGS)

lab: $(ready)
	@"$(bin)/python" -c 'import jupyterlab' 2>/dev/null \
		|| { echo "JupyterLab is missing: $(bin)/pip install jupyterlab"; exit 1; }
	cd nbs && "$(abspath $(bin))/jupyter" lab

# The pages as they are published, from the outputs that the notebooks hold
site: $(ready)
	@OMP_NUM_THREADS=1 "$(bin)/python" site/make_site.py

test-site: $(ready)
	"$(bin)/python" -m pytest tests/site -n $(JOBS) -v --durations=5 $(PYTEST_ARGS)

# For students without solutions, for teachers with solutions and a cell that grades
student: $(ready)
	"$(bin)/python" tools/make_student.py

export: $(ready)
	$(tools) nbdev-export

clean-notebooks: $(ready)
	$(tools) nbdev-clean

readme: $(ready)
	"$(bin)/python" tools/make_readme.py

cards: $(ready)
	"$(bin)/python" tools/make_cards.py

home: $(ready)
	"$(bin)/python" tools/make_home.py $(data)

minutes: $(ready)
	"$(bin)/python" tools/reading_time.py
	"$(bin)/python" tools/make_readme.py

outputs: $(ready)
	@$(run) --scale $(SCALE) $(data) --inplace
	"$(bin)/python" tools/make_readme.py

constraints: $(ready)
	"$(bin)/python" tools/make_constraints.py

dist: $(ready)
	rm -rf dist
	"$(bin)/python" -m build

clean:
	rm -rf course handout build dist *.egg-info .pytest_cache .ruff_cache .coverage*
	rm -rf _proc _docs _docs_screenshots .docs-tested site/node_modules
	rm -rf nbs/sidebar.yml nbs/katex nbs/licences nbs/browser
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
