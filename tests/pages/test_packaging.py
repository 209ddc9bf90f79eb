"""The package metadata, the wheel, the pinned versions, the accelerate configs and the Slurm script are consistent."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from trl import TrlParser
from trl.scripts.vllm_serve import ScriptArguments as VLLMServeArguments

import canon_trl
from canon_trl.trl_release import NEWEST, OLDEST

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SLURM_SCRIPT = "examples/slurm/multi_node_vllm.slurm"

# distributed_type, num_machines, num_processes, mixed_precision
LAUNCH = {
    "accelerate_configs/cpu.yaml": ("NO", 1, 1, "no"),
    "accelerate_configs/single_gpu.yaml": ("NO", 1, 1, "bf16"),
    "accelerate_configs/multi_gpu.yaml": ("MULTI_GPU", 1, 8, "bf16"),
    "accelerate_configs/zero2.yaml": ("DEEPSPEED", 1, 8, "bf16"),
    "accelerate_configs/zero3.yaml": ("DEEPSPEED", 1, 8, "bf16"),
    "accelerate_configs/fsdp2.yaml": ("FSDP", 1, 8, "bf16"),
    "accelerate_configs/multi_node_zero3.yaml": ("DEEPSPEED", 2, 16, "bf16"),
    "tests/configs/cpu_two_processes.yaml": ("MULTI_GPU", 1, 2, "no"),
    "tests/configs/zero2_cpu.yaml": ("DEEPSPEED", 1, 2, "no"),
    "tests/configs/zero3_cpu.yaml": ("DEEPSPEED", 1, 2, "no"),
}
ZERO_2 = {"zero_stage": 2}
ZERO_3 = {"zero_stage": 3, "zero3_init_flag": True, "zero3_save_16bit_model": True}
DEEPSPEED = {
    "accelerate_configs/zero2.yaml": ZERO_2,
    "accelerate_configs/zero3.yaml": ZERO_3,
    "accelerate_configs/multi_node_zero3.yaml": {"deepspeed_multinode_launcher": "standard", **ZERO_3},
    "tests/configs/zero2_cpu.yaml": ZERO_2,
    "tests/configs/zero3_cpu.yaml": ZERO_3,
}


def load(config: str) -> ClusterConfig:
    return load_config_from_file(str(ROOT / config))


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {normalise(name): version for name, version in (line.split("==") for line in lines)}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(*extras: str) -> list[Requirement]:
    listed = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    return [requirement for requirement in map(Requirement, listed) if requirement.name != PROJECT["name"]]


def test_every_launch_config_is_tested():
    folders = (ROOT / "accelerate_configs", ROOT / "tests" / "configs")
    assert {str(path.relative_to(ROOT)) for folder in folders for path in folder.iterdir()} == set(LAUNCH)


@pytest.mark.parametrize("config", LAUNCH)
def test_launch_config_parses(config):
    loaded = load(config)
    found = (loaded.distributed_type.value, loaded.num_machines, loaded.num_processes, loaded.mixed_precision)
    assert found == LAUNCH[config]
    assert loaded.use_cpu == (loaded.mixed_precision == "no")
    assert loaded.deepspeed_config == DEEPSPEED.get(config, {})


@pytest.mark.parametrize("config", LAUNCH)
def test_launch_config_begins_with_a_comment(config):
    comment, _ = (ROOT / config).read_text().split("compute_environment:")
    assert comment and all(line.startswith("#") for line in comment.splitlines())


def test_fsdp2_shards_like_zero3_and_saves_full_checkpoints():
    fsdp = load("accelerate_configs/fsdp2.yaml").fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_reshard_after_forward"] is True
    assert fsdp["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert canon_trl.__version__ == PROJECT["version"] == citation["version"]


def test_pins_are_exact_public_versions():
    # A local version such as 2.13.0+cpu exists on one package index only.
    assert pins()
    for name, version in pins().items():
        assert re.fullmatch(r"\d+(\.\d+)*((a|b|rc|\.post)\d+)?", version), f"{name}=={version}"


@pytest.mark.parametrize("requirement", requirements("deepspeed", "math", "test", "dev", "docs"), ids=str)
def test_pin_satisfies_the_requirement(requirement):
    assert requirement.specifier.contains(pins()[normalise(requirement.name)])


def test_the_requirement_of_trl_is_the_supported_releases():
    (trl,) = (requirement for requirement in requirements() if requirement.name == "trl")
    (major, oldest), (_, newest) = OLDEST, NEWEST
    supported = {f"{major}.{minor}": trl.specifier.contains(f"{major}.{minor}.0") for minor in range(newest + 3)}
    assert supported == {f"{major}.{minor}": oldest <= minor <= newest for minor in range(newest + 3)}
    assert pins()["trl"].startswith(f"{major}.{newest}.")


@pytest.mark.parametrize("path", ["pyproject.toml", "constraints.txt", ".pre-commit-config.yaml"])
def test_no_package_index_is_named(path):
    text = (ROOT / path).read_text().replace(PROJECT["urls"]["Repository"], "")
    named = re.findall(r"\w+://|--(?:extra-)?index-url|--find-links|\b[\w-]+\.(?:org|com|io|net)\b", text)
    assert named == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_the_description_of_the_wheel_has_absolute_links_to_existing_files(installed):
    """The relative links of the README have no base on the page of a package index."""
    (metadata,) = installed.glob("*.dist-info/METADATA")
    header, _, description = metadata.read_text().partition("\n\n")
    assert f"Project-URL: Repository, {PROJECT['urls']['Repository']}\n" in header
    inline = [
        child
        for token in MarkdownIt("commonmark").enable("table").parse(description)
        for child in [token, *(token.children or [])]
    ]
    links = {str(child.attrs.get("href") or child.attrs.get("src") or "") for child in inline} - {""}
    assert {link for link in links if not re.match("https://|#", link)} == set()
    own = re.compile(rf"{PROJECT['urls']['Repository']}/(blob|tree|raw)/v{re.escape(PROJECT['version'])}/([^#]+)")
    found = [match.groups() for match in map(own.match, links) if match]
    assert {view for view, _ in found} >= {"blob", "raw"}
    for view, path in found:
        assert (ROOT / path).is_dir() if view == "tree" else (ROOT / path).is_file(), path
    assert {path for view, path in found if view == "raw"} == {
        path for _, path in found if path.endswith((".png", ".svg"))
    }


def test_the_wheel_has_the_recipes_and_the_accelerate_configs(installed, tmp_path):
    package = installed / "canon_trl"
    for folder, source in {"recipes": ROOT / "canon_trl", "accelerate_configs": ROOT}.items():
        copies = {path.name: path.read_text() for path in (package / folder).glob("*.yaml")}
        assert copies == {path.name: path.read_text() for path in (source / folder).glob("*.yaml")} != {}
    read = "from canon_trl.recipes import FOLDER, read_recipe; print(FOLDER, read_recipe('verbosity')['canon_metric'])"
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", read]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(package / "recipes"), "entropy"]


def test_slurm_script_is_valid_bash():
    subprocess.run(["bash", "-n", SLURM_SCRIPT], cwd=ROOT, check=True)


def test_slurm_script_splits_the_nodes_between_trainers_and_server(tmp_path):
    """Scripts that record their arguments replace Slurm and the two programs that it starts."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "activate").write_text(f"PATH={programs}:$PATH")
    record_arguments = f'printf "%s\\n" "$@" >{tmp_path}/$(basename "$0")'
    for name, body in {
        "scontrol": "printf '%s\\n' node1 node2 node3",
        "srun": 'while [[ $1 == --* ]]; do echo "$1"; shift; done; SLURM_NODEID=1 exec "$@"',
        "python": f'exec "{sys.executable}" "$@"',
        "trl": record_arguments,
        "accelerate": record_arguments,
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)

    environment = {"VENV": str(tmp_path), "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "64"}
    steps = subprocess.run(
        ["bash", SLURM_SCRIPT, "--max_steps", "5"],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    assert sorted(step for step in steps if step.startswith("--nodelist")) == [
        "--nodelist=node1,node2",
        "--nodelist=node3",
    ]

    command, *flags = (tmp_path / "trl").read_text().splitlines()
    assert command == "vllm-serve"
    (server,) = TrlParser(VLLMServeArguments).parse_args_into_dataclasses(flags)
    assert (server.model, server.max_model_len, server.port) == ("Qwen/Qwen2.5-Math-7B", 10240, 8000)
    assert (server.tensor_parallel_size, server.data_parallel_size) == (4, 1)

    command, *flags = (tmp_path / "accelerate").read_text().splitlines()
    assert command == "launch"
    launch = launch_command_parser().parse_args(flags)
    assert launch.config_file == "accelerate_configs/multi_node_zero3.yaml"
    assert (launch.num_machines, launch.num_processes, launch.machine_rank) == (2, 16, 1)
    assert (launch.main_process_ip, launch.main_process_port) == ("node1", 29500)
    assert launch.training_script == "examples/train_canon.py"
    assert launch.training_script_args == [
        *("--config", "qwen2.5_math_7b_vllm_server"),
        *("--use_vllm", "--vllm_mode", "server", "--vllm_server_host", "node3", "--vllm_server_port", "8000"),
        *("--vllm_server_timeout", "1800", "--max_steps", "5"),
    ]
