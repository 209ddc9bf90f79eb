"""Nothing runs the code of a model or a checkpoint unasked, and the audit can look up every pinned package."""

import ast
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from toy import TASK, make_trainer

from canon_trl.cli import evaluate, train
from canon_trl.cli import values as estimate_values

ROOT = Path(__file__).parents[2]
FOLDERS = ("canon_trl", "examples", "benchmarks", "docs", ".ci")

UNPICKLERS = {"dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {
    *("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle", "pd.read_pickle"),
}
MUST_BE_FALSE = {"trust_remote_code", "shell", "allow_pickle"}


def runs_foreign_code(source: str) -> list[str]:
    """Return the expressions that could run code from a file or a hub."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found += sorted(names & CALLS) + [node.module] * ((node.module or "").split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), {option.arg: option.value for option in node.keywords}
            found += [name] * (name in CALLS)
            found += [
                f"{name}({option}=...)" for option in MUST_BE_FALSE & options.keys() if not is_false(options[option])
            ]
            if name == "torch.load" and not (
                isinstance(only := options.get("weights_only"), ast.Constant) and only.value
            ):
                found.append("torch.load without weights_only=True")
        elif isinstance(node, ast.Dict):
            pairs = [(key.value, value) for key, value in zip(node.keys, node.values, strict=True) if is_text(key)]
            found += [f"{key!r}: ..." for key, value in pairs if key in MUST_BE_FALSE and not is_false(value)]
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                key = target.slice if isinstance(target, ast.Subscript) else None
                if is_text(key) and key.value in MUST_BE_FALSE and not is_false(node.value):
                    found.append(f"[{key.value!r}] = ...")
    return found


def is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def sources() -> dict[str, str]:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    texts = {path: path.read_text() for path in paths if path.suffix == ".py"}
    for path in paths:
        if path.suffix == ".ipynb":
            cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
            code = [line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!"))]
            texts[path] = "\n".join(code)
    return {str(path.relative_to(ROOT)): text for path, text in texts.items()}


def test_no_source_runs_code_from_a_file_or_a_hub():
    texts = sources()
    assert {"canon_trl/hook/trainer.py", "examples/canon_quickstart.ipynb"} <= texts.keys()
    found = {path: runs for path, text in texts.items() if (runs := runs_foreign_code(text))}
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "options = {'trust_remote_code': True}",
        "options['trust_remote_code'] = True",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "from pickle import loads",
        "import dill",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_foreign_code_is_found(source):
    assert len(runs_foreign_code(source)) == 1


def test_harmless_code_passes():
    lines = ("torch.load(p, weights_only=True)", "model.eval()", "yaml.safe_load(text)", "f(trust_remote_code=False)")
    assert runs_foreign_code("\n".join(lines)) == []


def test_no_recipe_trusts_remote_code():
    recipes = sorted((ROOT / "canon_trl" / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert "trust_remote_code" not in yaml.safe_load(path.read_text()), path.name


@pytest.fixture
def model_with_code(tmp_path) -> tuple[Path, Path]:
    """A model whose folder has code that creates a file when it runs, and the path of that file."""
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(TASK.model_path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_qwen", "architectures": ["Own"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class OwnConfig(Qwen3Config):\n"
        "    model_type = 'own_qwen'\n"
        "class Own(Qwen3ForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    return folder, ran


def arguments(model: Path, *more: str) -> list[str]:
    return [
        "--task",
        "arithmetic",
        "--model_name_or_path",
        str(model),
        "--output_dir",
        str(model.parent / "out"),
        *more,
    ]


TRAIN = ("--max_steps", "1", "--num_generations", "4", "--per_device_train_batch_size", "4", "--eval_strategy", "no")
TRAIN = (*TRAIN, "--max_completion_length", "4", "--bf16", "false", "--use_cpu", "true", "--report_to", "none")


@pytest.mark.parametrize(("script", "options"), [(train, TRAIN), (evaluate, ()), (estimate_values, ())])
def test_a_model_with_custom_code_is_rejected(model_with_code, script, options):
    folder, ran = model_with_code
    with pytest.raises(ValueError, match="contains custom code"):
        script.main(arguments(folder, *options))
    assert not ran.exists()


def test_training_runs_custom_code_with_trust_remote_code(model_with_code):
    folder, ran = model_with_code
    trainer = train.main(arguments(folder, *TRAIN, "--trust_remote_code", "true"))
    assert type(trainer.model).__name__ == "Own"
    assert ran.exists()


@pytest.mark.parametrize("script", [evaluate, estimate_values])
def test_sampling_rejects_trust_remote_code(model_with_code, script):
    folder, ran = model_with_code
    with pytest.raises(ValueError, match=r"unknown option.*trust_remote_code"):
        script.main(arguments(folder, "--trust_remote_code", "true"))
    assert not ran.exists()


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, max_steps=2, num_iterations=2, save_strategy="steps", save_steps=1).train()
    return folder / "checkpoint-1"


def resume(checkpoint: Path, folder: Path) -> None:
    make_trainer(folder, max_steps=2, num_iterations=2).train(resume_from_checkpoint=str(checkpoint))


def test_the_pickled_object_of_these_tests_runs_without_protection(tmp_path):
    torch.save(Touch(tmp_path / "ran"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["rollout_state_0.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_with_a_pickled_object_is_rejected(checkpoint, tmp_path, name):
    changed = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    assert (changed / name).exists()
    torch.save({"state": Touch(tmp_path / "ran")}, changed / name)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        resume(changed, tmp_path / "resumed")
    assert not (tmp_path / "ran").exists()


def test_the_pickled_arguments_of_a_checkpoint_are_ignored(checkpoint, tmp_path):
    changed = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    torch.save(Touch(tmp_path / "ran"), changed / "training_args.bin")
    resume(changed, tmp_path / "resumed")
    assert not (tmp_path / "ran").exists()


class VulnerabilityList:
    """A local server of vulnerabilities with OSV's protocol."""

    def __init__(self, known: dict[str, str]) -> None:
        def answer(query: dict) -> dict:
            name = query["package"]["name"]
            if name not in known:
                return {}
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}]
            affected = [{"package": query["package"], "ranges": ranges}]
            return {"vulns": [{"id": known[name], "summary": "a hole", "affected": affected}]}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(answer(query)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"


@pytest.fixture
def audit(tmp_path) -> Iterator:
    """Return a function that audits pins against known vulnerabilities and returns the exit status and the output."""
    servers = []

    def run(known: dict[str, str] | None, pins: str = "six==1.17.0\nrich==15.0.0\n", ignored: str = "") -> tuple:
        (tmp_path / "pins.txt").write_text(pins)
        (tmp_path / "ignored.txt").write_text(ignored)
        found = VulnerabilityList(known or {})
        if known is None:
            found.server.server_close()  # no server answers
        else:
            servers.append(found.server)
            threading.Thread(target=found.server.serve_forever, daemon=True).start()
        options = ["--requirements", str(tmp_path / "pins.txt"), "--ignored", str(tmp_path / "ignored.txt")]
        command = [sys.executable, str(ROOT / ".ci" / "audit.py"), "--osv-url", found.url, *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return ended.returncode, ended.stdout + ended.stderr

    yield run
    for server in servers:
        server.shutdown()  # otherwise its thread would keep polling a closed socket
        server.server_close()


CONTROL = {"jinja2": "GHSA-control"}


def test_an_audit_without_vulnerabilities_passes(audit):
    status, output = audit(CONTROL)
    assert (status, "2 packages looked up, 0 not; 0 known vulnerabilities" in output) == (0, True), output


def test_an_audit_with_a_vulnerability_fails(audit):
    status, output = audit(CONTROL | {"six": "GHSA-hole"})
    assert status == 1
    assert "six 1.17.0: GHSA-hole, fixed in 99.0" in output


def test_a_vulnerability_ignored_with_a_reason_passes(audit):
    status, output = audit(CONTROL | {"six": "GHSA-hole"}, ignored="# comment\nGHSA-hole  # six is not called\n")
    assert (status, "not counting 1 ignored" in output) == (0, True), output


def test_ignoring_a_vulnerability_needs_a_reason(audit):
    status, output = audit(CONTROL, ignored="GHSA-hole\n")
    assert status == 1
    assert "'GHSA-hole' gives no reason" in output


@pytest.mark.parametrize("known", [None, {}], ids=["no server", "an empty list"])
def test_a_skipped_audit_says_so(audit, known):
    status, output = audit(known)
    assert (status, output.startswith("AUDIT SKIPPED, nothing was looked up: ")) == (0, True), output


def test_the_audit_can_look_up_every_pinned_package():
    """pip-audit reads every line of the file as a package with a version."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"]
    ended = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert f"would have audited {len(pins)} packages" in ended.stderr, ended.stderr
