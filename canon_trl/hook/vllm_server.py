"""Check the vLLM server: its address, its model, and that it stays the same process during the run."""

import json
import os
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from trl import GRPOConfig

from canon_trl.guards.reward_names import model_id
from canon_trl.hook.data_checks import load_tokenizer

SECONDS_BETWEEN_TRIES = 2.0
PROBE = "The answer is 12."  # what the tokenizers of trainer and server are compared on


def check_server(model: Any, args: GRPOConfig, trl_kwargs: Mapping[str, Any]) -> None:
    """Check before a model is loaded that the vLLM server answers and serves the model to be trained.

    TRL's client waits forever for a server that answers with an error, and never compares the models: the server would
    end responses at the tokens of its own model, and only the first transfer of weights might fail.

    Raises:
        ValueError: the address is malformed, or the server has another model or tokenizer.
        ConnectionError: no vLLM server answers in time.
    """
    field, url = server_address(args)
    wait_for_server(field, url, args.vllm_server_timeout)
    models = ask(f"{url}/v1/models")
    if models is None:  # before TRL 1.11, `trl vllm-serve` does not name its model
        return
    served, own = models["data"][0], policy_name(model)
    names = {served["id"], served.get("root") or served["id"]}
    if own and last_part(own) not in map(last_part, names):
        raise ValueError(
            f"{field} serves {' alias '.join(sorted(names))}, but the trained model is {own!r}; serve that model, or "
            f"add --served-model-name {last_part(own)} to the server's command if it is the same one"
        )
    tokenizer = trl_kwargs.get("processing_class") or load_tokenizer(model, args)
    answer = ask(f"{url}/tokenize", {"model": served["id"], "prompt": PROBE, "add_special_tokens": False})
    if tokenizer is None or answer is None:
        return
    ids = getattr(tokenizer, "tokenizer", tokenizer)(PROBE, add_special_tokens=False)["input_ids"]
    if ids != answer["tokens"]:
        raise ValueError(
            f"{field} serves {served['id']!r} with a vocabulary that differs from the trainer's: {PROBE!r} is "
            f"{answer['tokens']} there and {ids} here; serve the trained model with its own tokenizer"
        )


def server_address(args: GRPOConfig) -> tuple[str, str]:
    """Return the fields that give the server's address, with their values, and the address.

    Raises:
        ValueError: it is not an address that TRL's client can use.
    """
    if args.vllm_server_base_url is not None:
        field, url = f"vllm_server_base_url={args.vllm_server_base_url!r}", args.vllm_server_base_url
        allowed = "it must be like 'http://localhost:8000', without a slash at the end"
        valid = not url.endswith("/")
    else:
        field = f"vllm_server_host={args.vllm_server_host!r}, vllm_server_port={args.vllm_server_port!r}"
        url = f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        allowed = "they must be a host name or an IP address, and a port; a URL goes into vllm_server_base_url"
        valid = "/" not in args.vllm_server_host
    try:
        parts = urlsplit(url)
        valid = valid and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number from 0 to 65535
        valid = False
    if not valid:
        raise ValueError(f"{field}: {allowed}")
    return field, url


def wait_for_server(field: str, url: str, timeout: float) -> None:
    """Wait until the server is healthy.

    Raises:
        ConnectionError: it is not after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            with urlopen(f"{url}/health", timeout=max(timeout, 1.0)):
                return
        except HTTPError as error:
            reason = f"GET {url}/health gives {error.code} {error.reason}"
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = str(getattr(error, "reason", error))
        if time.monotonic() >= end:
            raise ConnectionError(
                f"{field}: no vLLM server is ready there after vllm_server_timeout={timeout} seconds ({reason}); "
                "start one with `trl vllm-serve` or `vllm serve`"
            )
        time.sleep(min(SECONDS_BETWEEN_TRIES, max(end - time.monotonic(), 0.0)))


def ask(url: str, question: dict[str, Any] | None = None) -> Any:
    """Return the answer of a server to a GET, or to a POST of `question`; `None` if it gives none."""
    data = None if question is None else json.dumps(question).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
            return json.load(answer)
    except (HTTPError, json.JSONDecodeError):
        return None


def policy_name(model: Any) -> str:
    """Return the folder or the name on the Hub that a server loads for this model; of an adapter, its base model's."""
    name = model_id(model)
    adapter = Path(name, "adapter_config.json")
    is_adapter = bool(name) and adapter.is_file()
    return json.loads(adapter.read_text())["base_model_name_or_path"] if is_adapter else name


def last_part(name: str) -> str:
    return os.path.basename(os.path.abspath(name))


class SameServer:
    """Checks before and after sampling that the server has not restarted.

    A server that returns has the weights that it was started with and no longer receives the trainer's. TRL's client
    repeats failed requests for a minute, so it could sample from those weights without noticing.

    Args:
        client: TRL's client.

    Raises:
        RuntimeError: the server has restarted.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._instance = self._read()

    def _read(self) -> Any:
        """Return what identifies the server's process; `None` without vLLM's development endpoints."""
        url, given = f"{self._client.base_url}/server_info", {"config_format": "json"}
        answer = self._client.session.get(url, params=given, timeout=60)
        config = answer.json().get("vllm_config") if answer.status_code == 200 else None
        return config.get("instance_id") if isinstance(config, dict) else None

    def _check(self) -> None:
        if self._read() != self._instance:
            raise RuntimeError(
                f"the vLLM server at {self._client.base_url} has restarted and no longer has the trained weights; "
                "start the run again from its last checkpoint"
            )

    def __enter__(self) -> None:
        self._check()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._check()
