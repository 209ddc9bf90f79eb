"""A local Hub server that stores pushed files and serves them again."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
LARGE = (".safetensors", ".bin", ".parquet", ".png")


@dataclass
class LocalHub:
    """The content of the Hub and how it answers."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)  # keys: `models/me/name/path` or `datasets/me/name/path`
    repositories: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)  # LFS uploads by SHA-256
    commits: list[str] = field(default_factory=list)  # the repository of each commit
    status: int = 200  # HTTP status of every upload; any other status rejects it

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point `huggingface_hub` to this server, which supports Git LFS but not Xet."""
        named = {"HF_ENDPOINT": self.address, "HF_TOKEN": "hf_local", "HF_HUB_OFFLINE": "0"}
        return named | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    @property
    def head(self) -> str:
        return f"{len(self.commits):040x}"

    def of(self, repository: str) -> dict[str, bytes]:
        """Return the files of a repository such as `models/me/name`, by path."""
        start = f"{repository}/"
        return {path.removeprefix(start): content for path, content in self.files.items() if path.startswith(start)}

    def commit(self, repository: str, lines: list[bytes]) -> None:
        for line in lines:
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.files[f"{repository}/{value['path']}"] = self.large[value["oid"]]
        self.commits.append(repository)


def describe(path: str, content: bytes) -> dict[str, Any]:
    """Return the listing entry of a file; a large file has the hash of its content."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "rfilename": path, "size": len(content), "oid": blob}
    if path.endswith(LARGE):
        oid = hashlib.sha256(content).hexdigest()
        # A file listing calls the hash `oid`, the repository info calls it `sha256`.
        entry["lfs"] = {"oid": oid, "sha256": oid, "size": len(content), "pointerSize": 130}
    return entry


class Handler(BaseHTTPRequestHandler):
    """Handles the requests that `huggingface_hub` makes to push, load and list files."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        always = {
            "Content-Length": str(len(body)),
            "Connection": "close",
        }  # so that none outlives the server
        for name, value in (always | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if asked := re.fullmatch(r"/(?P<datasets>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)", path):
            repository = f"{asked['datasets'] or 'models/'}{asked['name']}"
            self.send_file(repository, asked["path"])
        elif asked := re.fullmatch(rf"/api/(?P<repository>{REPOSITORY})(/revision/[^/]+)?", path):
            self.send_info(asked["repository"], asked["name"])
        elif asked := re.fullmatch(rf"/api/(?P<repository>{REPOSITORY})/tree/[^/]+(/(?P<folder>.+))?", path):
            files = self.hub.of(asked["repository"])
            start = f"{asked['folder']}/" if asked["folder"] else ""
            self.answer([describe(path, content) for path, content in files.items() if path.startswith(start)])
        elif path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        else:
            self.missing("EntryNotFound")

    def send_info(self, repository: str, name: str) -> None:
        if repository not in self.hub.repositories:
            self.missing("RepoNotFound")
            return
        siblings = [describe(path, content) for path, content in self.hub.of(repository).items()]
        self.answer({"id": name, "sha": self.hub.head, "private": False, "tags": [], "siblings": siblings})

    def send_file(self, repository: str, path: str) -> None:
        if repository not in self.hub.repositories:
            self.missing("RepoNotFound")
            return
        content = self.hub.of(repository).get(path)
        if content is None:
            self.missing("EntryNotFound")
            return
        entry = describe(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            content = content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            status = 206
        self.answer(content, status, ETag=f'"{etag}"', X_Repo_Commit=self.hub.head)

    def do_PUT(self) -> None:
        content = self.body()
        if self.hub.status != 200:
            self.answer({"error": "rejected"}, self.hub.status)
            return
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.repositories.add(f"{kind or 'models/'}{name}")
            self.answer({"url": f"{self.hub.address}/{kind}{name}"})
        elif path.endswith("/objects/batch"):
            objects = [{"oid": each["oid"], "size": each["size"]} for each in json.loads(body)["objects"]]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.hub.address}/large/{each['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif "/preupload/" in path:
            modes = {file["path"]: file["path"].endswith(LARGE) for file in json.loads(body)["files"]}
            files = [
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                for path, large in modes.items()
            ]
            self.answer({"files": files})
        elif asked := re.fullmatch(rf"/api/(?P<repository>{REPOSITORY})/commit/[^/]+", path):
            if self.hub.status != 200:
                self.answer({"error": "rejected"}, self.hub.status)
                return
            self.hub.commit(asked["repository"], body.splitlines())
            url = f"{self.hub.address}/{asked['repository'].removeprefix('models/')}/commit/{self.hub.head}"
            self.answer({"commitUrl": url, "commitOid": self.hub.head, "pullRequestUrl": None})
        elif asked := re.fullmatch(rf"/api/(?P<repository>{REPOSITORY})/paths-info/[^/]+", path):
            paths = json.loads(body)["paths"]
            files = self.hub.of(asked["repository"])
            self.answer([describe(path, files[path]) for path in paths if path in files])
        else:
            self.answer({})


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Run an empty Hub; processes reach it through the variables in `environment`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.RequestHandlerClass = type("BoundHandler", (Handler,), {"hub": LocalHub(address(server))})
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.RequestHandlerClass.hub
    finally:
        server.shutdown()
        server.server_close()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"
