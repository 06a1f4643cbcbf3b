# make demo    install, train on real solar cells, and see where the network looks
# make test    install and run every check
# make soak    the long form of the tests that kill processes
# make format  apply what ruff can mend

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test soak format clean

demo: $(VENV)/installed-demo
	WILDCAT_CACHE=$(DEMO)/cache $(BIN)/wildcat train solar --recipe solar-demo --out $(DEMO)/run --resume
	rm -rf $(DEMO)/predictions
	$(BIN)/wildcat predict $(DEMO)/run solar --split test --limit 48 --classes defective \
		--save overlays,modalities --out $(DEMO)/predictions
	rm -f $(DEMO)/report.html
	$(BIN)/wildcat report $(DEMO)/run solar --split test --out $(DEMO)/report.html
	$(BIN)/wildcat evaluate $(DEMO)/run solar --split test
	@echo
	@echo "A network that was only told which cells are defective, not where. The figures above are on cells it never saw."
	@echo "Open  $(DEMO)/report.html                            figures, curves, hits and misses, on one page"
	@echo "      $(DEMO)/predictions/overview.jpg               where it looks, 48 cells at a glance"
	@echo "      $(DEMO)/predictions/overlays/                  each cell with heatmap and point"
	@echo "      $(DEMO)/predictions/modalities/                the four maps (M = 4) behind the class"
	@echo "      $(DEMO)/predictions/predictions.jsonl          scores, labels, points and boxes"
	@echo "Try   $(BIN)/wildcat serve $(DEMO)/run                 a page to drop pictures on, at the address it prints"
	@echo "Next  $(BIN)/wildcat train YOUR_FOLDER --tune head --out runs/mine"

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

soak: $(VENV)/installed-test
	$(BIN)/python benchmarks/soak.py --out soak.json

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,serve]'
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lite,demo,plot,serve,test]'
	touch $@ $(VENV)/installed-demo

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
