# medcoss bundle collection. Every target works on a fresh clone; `install` is run when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
DEMO_DIR ?= runs/demo
SAMPLE_DIR ?= sample_data
CHAIN := bundles/medcoss_continual_pretraining/configs
INSTALLED := $(VENV)/.installed

.PHONY: install demo test lint bundles bench bench-check ui clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

demo: install ## fetch the sample data and run the five-stage chain on the CPU
	$(BIN)/medcoss sample fetch $(SAMPLE_DIR)
	$(BIN)/medcoss sample fetch $(SAMPLE_DIR) --task pubmed_sections --task xray_body_part --task ct_body_region \
		--task pathology_tissue
	$(BIN)/python -m monai.bundle run --config_file "['$(CHAIN)/train.json','$(CHAIN)/demo.json']" \
		--sample_dir $(SAMPLE_DIR) --store_dir stores --output_dir $(DEMO_DIR)

test: install lint ## bundles up to date, all tests, coverage of the package at least 90 %
	$(BIN)/medcoss bundles build --check
	$(BIN)/medcoss manifest pages docs/data --check
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term --cov-fail-under=90 -q --durations=25

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

bundles: install ## write the bundles' JSON configs from the templates, and the data sets' pages from the recipes
	$(BIN)/medcoss bundles build
	$(BIN)/medcoss manifest pages docs/data

bench: install ## the speed table, both sides alternating; on an idle machine, about 45 minutes
	$(BIN)/python benchmarks/run.py --record

bench-check: install ## its short form; fails where a ratio fell under 80 % of the recorded one
	$(BIN)/python benchmarks/run.py --check

ui: install ## open the tracked runs of the demo (or DEMO_DIR=...) in MLflow
	$(BIN)/mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(abspath $(DEMO_DIR))/mlruns.db}"

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mlflow .mypy_cache
