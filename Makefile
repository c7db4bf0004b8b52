# Every verb is a thin line over a public tool; the first one used sets up .venv (2-4 minutes, once).
#   make PYTHON=python3.12 test              another interpreter (>= 3.11)
#   PIP_EXTRA_INDEX_URL=... make test        another source of wheels, e.g. PyTorch's index of CPU builds

PYTHON  ?= python3
PROFILE ?= reading
CASES   ?= 2000
SEED    ?= 0
BIN     := .venv/bin

.PHONY: help study figures test coverage mutants fuzz audit lab refresh site archives bench verify lint clean clean-data
.DEFAULT_GOAL := help

help:
	@echo "make study     the study at the quick reading profile -> build/reading/city/index.html"
	@echo "               options: PROFILE=evidence, DATASET=path/to/card.yaml (else the profile's)"
	@echo "make figures   the evidence profile; writes figures/ (some five hours on two cores, resumable)"
	@echo "make test      lint, unit tests, notebooks at a tiny size, stored notebook outputs"
	@echo "make coverage  lines and branches of nbutils that the unit tests reach -> build/coverage (half an hour)"
	@echo "make mutants   changes of the code that the tests notice -> build/reliability.json (half an hour)"
	@echo "make fuzz      2000 damaged files, options CASES=..., SEED=... -> build/reliability.json (nightly, 5-10 minutes)"
	@echo "make audit     published vulnerabilities of the tested packages (needs the network)"
	@echo "make lab       JupyterLab on the notebooks"
	@echo "make refresh   run the notebooks at their defaults and store their outputs"
	@echo "make site      notebooks, figures and texts as web pages -> build/site/index.html"
	@echo "make archives  public archives with a recipe, their sizes and licences"
	@echo "make bench     benchmark table -> build/bench.md"
	@echo "make verify    redo one stored run and compare: RUN=<key>"
	@echo "make lint      ruff over code and notebooks"
	@echo "make clean     remove build/ and caches;  make clean-data  also finished runs and generated worlds"

# ---- set-up ----------------------------------------------------------------------------------------------------
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else "Python >= 3.11 is needed, $(PYTHON) is " + v + "; try: make PYTHON=python3.12")'
	@echo "Setting up .venv with $$($(PYTHON) --version): about 200 packages, 2-4 minutes, once."
	@$(PYTHON) -m venv .venv || { echo "venv cannot bring pip here; using the pip of $(PYTHON)."; \
	    $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e '.[notebooks,test]'
	@touch $@
	@echo "Set-up done."

# ---- the study -------------------------------------------------------------------------------------------------
study: .venv/.ready
	@$(BIN)/python tools/study.py --profile '$(PROFILE)' $(if $(DATASET),--dataset '$(DATASET)')

figures: .venv/.ready
	@$(BIN)/python tools/study.py --profile evidence --publish figures
	@$(BIN)/python tools/study.py --profile evidence_globe --only 03,04,05 \
	    --publish-tables figures/globe
	@$(BIN)/python tools/study.py --profile evidence_dubai --only 05 \
	    --publish-tables figures/dubai || test $$? = 3  # 3: the images are not here, which it has said
	@$(BIN)/python tools/readme.py

lab: .venv/.ready
	$(BIN)/jupyter lab notebooks/00_overview.ipynb

archives: .venv/.ready
	@$(BIN)/python tools/acquire.py --list

refresh: .venv/.ready
	@$(BIN)/python tools/refresh.py

site: .venv/.ready
	@$(BIN)/python tools/site_pages.py

verify: .venv/.ready
	@test -n '$(RUN)' || { echo "say which run: make verify RUN=<key>, the name of a folder in data/runs"; exit 2; }
	@$(BIN)/python tools/verify.py '$(RUN)'

# ---- checks ----------------------------------------------------------------------------------------------------
lint: .venv/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

test: lint
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder --durations=10
	$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
	    --nbval-cell-timeout=1800 -n 2 --dist loadfile notebooks

coverage: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks,test,dev]'
	$(BIN)/python -m pytest tests -m 'not notebook' -n 2 --dist loadfile --no-loadscope-reorder \
	    --cov --cov-report=html:build/coverage --cov-report=json:build/coverage.json
	@$(BIN)/python tools/reliability.py coverage

mutants: .venv/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks,test,dev]'
	@$(BIN)/python tools/mutants.py

fuzz: .venv/.ready
	@$(BIN)/python tools/fuzz.py --cases '$(CASES)' --seed '$(SEED)'

audit:
	@mkdir -p build
	@test -x build/audit/bin/pip-audit || { rm -rf build/audit; $(PYTHON) -m venv build/audit \
	    && build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit; }
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off

bench: .venv/.ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf build
	find nbutils tests tools benchmarks notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

clean-data: clean
	rm -rf data/runs data/cache
