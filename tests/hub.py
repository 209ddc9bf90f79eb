"""A hub on this machine: it takes what is pushed and keeps the files."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@contextmanager
def local_hub() -> Iterator[tuple[dict[str, str], dict[str, bytes]]]:
    """The environment that makes `huggingface_hub` push here, and the files that arrive, by `repository/path`."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def address(self) -> str:
            return f"http://{self.headers['Host']}"

        def answer(self, content: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer({"sha": "0" * 40, "id": "me/values", "siblings": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.endswith("/repos/create"):
                asked = json.loads(body)
                kind = {"dataset": "datasets/", "space": "spaces/"}.get(asked.get("type"), "")
                self.answer({"url": f"{self.address()}/{kind}{asked['organization']}/{asked['name']}"})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            elif "/commit/" in self.path:
                repository = self.path.split("/commit/")[0].removeprefix("/api/")
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
                url = f"{self.address()}/{repository}/commit/{'0' * 40}"
                self.answer({"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None})
            else:
                self.answer({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        yield {"HF_ENDPOINT": address, "HF_TOKEN": "hf_local", "HF_HUB_OFFLINE": "0"}, files
    finally:
        server.shutdown()
