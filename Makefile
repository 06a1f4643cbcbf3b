# make demo    install, train on images of solar cells, and show where the model finds defects
# make test    install and run every check; the tests in JOBS processes
# make test-oldest  run the fast tests with the oldest allowed dependencies; downloads about 3 GB, so not part of make test
# make docs    build the documentation into site/
# make bench   run every benchmark on this machine, and print its goals and what became slower; DATA names the folder that holds VOCdevkit/
# make soak    run the long form of the tests that kill processes
# make format  format the code and apply the fixes of ruff

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
DEMO ?= demo
OLDEST ?= .venv-oldest
DATA ?= $(or $(WILDCAT_TEST_DATA),../shared/data)
BENCH ?= benchmarks/results

.PHONY: demo test test-oldest docs bench soak format clean

demo: $(VENV)/installed-demo
	WILDCAT_CACHE=$(DEMO)/cache $(BIN)/wildcat train solar --recipe solar-demo --out $(DEMO)/run --resume
	rm -rf $(DEMO)/predictions
	$(BIN)/wildcat predict $(DEMO)/run solar --split test --limit 48 --classes defective \
		--save overlays,modalities --out $(DEMO)/predictions
	rm -f $(DEMO)/report.html
	$(BIN)/wildcat report $(DEMO)/run solar --split test --out $(DEMO)/report.html
	$(BIN)/wildcat evaluate $(DEMO)/run solar --split test
	@echo
	@echo "The model was trained with labels of whole cells only. The metrics above are measured on held-out cells."
	@echo "Open  $(DEMO)/report.html                            metrics, curves, hits and misses on one page"
	@echo "      $(DEMO)/predictions/overview.jpg               heatmaps of 48 cells on one sheet"
	@echo "      $(DEMO)/predictions/overlays/                  each cell with its heatmap and point"
	@echo "      $(DEMO)/predictions/modalities/                the maps of the class (M = 4; alike, so drawn once)"
	@echo "      $(DEMO)/predictions/predictions.jsonl          scores, labels, points and boxes"
	@echo "Try   $(BIN)/wildcat serve $(DEMO)/run                 a demo page for your own images"
	@echo "Next  $(BIN)/wildcat train YOUR_FOLDER --tune head --out runs/mine"

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -o addopts='-q --import-mode=importlib' tests/nn tests/metrics tests/regions tests/models \
		tests/viz tests/data tests/train/test_loop.py tests/train/test_optim.py tests/cli/test_cli.py tests/test_predictor.py \
		tests/test_prediction.py tests/test_evaluation.py

docs: $(VENV)/installed-test
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open  site/index.html"

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/head_cost.py --rounds 6 --out $(BENCH)/head-cost.json
	$(BIN)/python benchmarks/head_cost.py --backbones lite2,resnet50 --classes 1000 --num-maps 8 --tasks inference \
		--rounds 8 --out $(BENCH)/head-cost-1000.json
	$(BIN)/python benchmarks/cold_start.py --image "$(firstword $(wildcard $(DATA)/VOCdevkit/VOC2012/JPEGImages/*.jpg))" \
		--out $(BENCH)/cold-start.json
	$(BIN)/python benchmarks/costs.py --out $(BENCH)/costs.json
	$(BIN)/python benchmarks/spatial_pool.py --rounds 3 --out $(BENCH)/spatial-pool.json
	$(BIN)/python benchmarks/scaling.py --rounds 5 --out $(BENCH)/scaling.json
	$(BIN)/python benchmarks/engines.py --images $(DATA)/VOCdevkit --rounds 6 --gradcam-rounds 1 \
		--out $(BENCH)/engines.json
	$(BIN)/python benchmarks/head_training.py --data $(DATA)/VOCdevkit --rounds 2 --out $(BENCH)/head-training.json
	$(BIN)/python benchmarks/train_throughput.py --data $(DATA)/VOCdevkit --out $(BENCH)/train-throughput.json
	$(BIN)/wildcat train $(DATA)/VOCdevkit --tune head --backbone lite2 --image-size 320 --val-split none --resume \
		--out build/bench-run
	$(BIN)/python benchmarks/engine_accuracy.py --run build/bench-run --data $(DATA)/VOCdevkit --name "VOC 2012 mini" \
		--out $(BENCH)/engine-accuracy.json
	$(BIN)/python benchmarks/predict_throughput.py --run build/bench-run --images $(DATA)/VOCdevkit/VOC2012/JPEGImages --rounds 2 \
		--out $(BENCH)/predict-throughput.json
	$(BIN)/python benchmarks/serve_load.py --out $(BENCH)/serve-load.json
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/goals.py --results $(BENCH)

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lite,demo,plot,serve,docs,test]'
	touch $@ $(VENV)/installed-demo

$(VENV)/installed-bench: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lite,demo,plot,serve,docs,test,bench]'
	touch $@ $(VENV)/installed-test $(VENV)/installed-demo

$(OLDEST)/installed: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -e . -r tests/oldest.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(DEMO) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
