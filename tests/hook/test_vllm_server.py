"""The checks of the vLLM server, against a small HTTP server; `tests/vllm_engine/test_server.py` has the real one."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
import requests
from toy import TASK, config, prompts
from transformers import AutoTokenizer

from canon_trl import CANONTrainer
from canon_trl.hook.vllm_server import PROBE, SameServer, check_server

MODEL = str(TASK.model_path)
TOKENS = AutoTokenizer.from_pretrained(MODEL)(PROBE, add_special_tokens=False)["input_ids"]


def models(name, root=None):
    return {"data": [{"id": name, "root": root or name}]}


@contextmanager
def serving(**answers):
    """Serve answers by the last part of their path, with status 200, and yield the address and the answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.split("?")[0].split("/")[-1])
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", answers
    finally:
        server.shutdown()
        server.server_close()


def make(model=MODEL, **options):
    options = {"use_vllm": True, "vllm_mode": "server", "vllm_server_timeout": 0.1} | options
    return CANONTrainer(model, TASK.reward, config(**options), prompts(8))


@pytest.mark.parametrize(
    "options",
    [
        {"vllm_server_base_url": "localhost:8000"},
        {"vllm_server_base_url": "http://localhost:8000/"},
        {"vllm_server_base_url": "http://:8000"},
        {"vllm_server_host": "http://localhost"},
        {"vllm_server_port": 80000},
    ],
)
def test_an_address_that_the_client_cannot_use(options):
    ((field, value),) = options.items()
    with pytest.raises(ValueError, match=f"{field}={value!r}.*must be"):
        make(**options)


def test_nothing_answers():
    with serving() as (url, _):
        pass
    with pytest.raises(ConnectionError, match=f"vllm_server_base_url='{url}': no vLLM server is ready.*refused"):
        make(vllm_server_base_url=url)
    port = int(url.split(":")[-1])
    with pytest.raises(ConnectionError, match=f"vllm_server_host='127.0.0.1', vllm_server_port={port}: no vLLM"):
        make(vllm_server_host="127.0.0.1", vllm_server_port=port)


def test_something_else_answers():
    """TRL's client would wait forever for such a server."""
    with serving() as (url, _), pytest.raises(ConnectionError, match=f"no vLLM server.*{url}/health gives 404"):
        make(vllm_server_base_url=url)


def test_another_model():
    served = models("policy", "/models/other")
    with serving(health={}, models=served) as (url, _):
        with pytest.raises(
            ValueError, match=rf"serves /models/other alias policy, but the trained model is '{MODEL}'"
        ):
            make(vllm_server_base_url=url)


def test_another_vocabulary():
    with serving(health={}, models=models(MODEL), tokenize={"tokens": [7, 8]}) as (url, _):
        with pytest.raises(ValueError, match=rf"{url}' serves .* with a vocabulary that .*is \[7, 8\] there and \["):
            make(vllm_server_base_url=url)


@pytest.mark.parametrize(
    "answers",
    [
        {"models": models(MODEL)},
        {"models": models("/elsewhere/arithmetic_model/")},
        {"models": models("arithmetic_model", "/elsewhere/checkpoint-500"), "tokenize": {"tokens": TOKENS}},
        {},  # the server of TRL 1.9 and 1.10
    ],
)
def test_the_model_under_any_path_or_alias(answers):
    with serving(health={}, **answers) as (url, _):
        check_server(MODEL, config(vllm_server_base_url=url), {})


def test_an_adapter_is_served_as_its_base_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    with serving(health={}, models=models("owner/base")) as (url, _):
        check_server(str(tmp_path), config(vllm_server_base_url=url), {})


def test_a_server_that_restarts():
    with serving(server_info={"vllm_config": {"instance_id": "1"}}) as (url, answers):
        same_server = SameServer(SimpleNamespace(session=requests.Session(), base_url=url))
        with same_server:
            pass
        with pytest.raises(RuntimeError, match=f"the vLLM server at {url} has restarted"), same_server:
            answers["server_info"] = {"vllm_config": {"instance_id": "2"}}
        with pytest.raises(RuntimeError, match="has restarted"), same_server:
            pytest.fail("the check comes before sampling")
