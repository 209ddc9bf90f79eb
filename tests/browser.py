"""A headless Chromium, controlled through its DevTools protocol on a pipe; needs no package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# It runs as root and without a network.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)


class Browser:
    """One tab. `requests` and `errors` collect the URLs that it asks for and what its console reports as an error."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # The protocol needs file descriptors 3 and 4.
        start = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", start, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.incoming, self.outgoing = ours_in, ours_out
        self.received = b""
        self.last_id = 0
        self.loaded = False
        self.session: dict[str, str] = {}
        self.requests: list[str] = []
        self.errors: list[str] = []
        pages = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.incoming)
        os.close(self.outgoing)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params, **self.session}
        os.write(self.outgoing, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.last_id:
            pass
        assert "error" not in reply, (method, reply["error"])
        return reply["result"]

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        """Return the next message, {} if none comes in time, and take note of requests and errors."""
        until = time.monotonic() + seconds
        while b"\0" not in self.received:
            if not select.select([self.incoming], [], [], max(0.0, until - time.monotonic()))[0]:
                assert seconds < 60, "the browser does not answer"
                return {}
            part = os.read(self.incoming, 1 << 20)
            assert part, "the browser has ended"
            self.received += part
        line, _, self.received = self.received.partition(b"\0")
        message = json.loads(line)
        params = message.get("params", {})
        if message.get("method") == "Page.loadEventFired":
            self.loaded = True
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(json.dumps(params["args"]))
        return message

    def open(self, url: str, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Load the page and all that it needs."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        self.requests, self.errors, self.loaded = [], [], False
        for _ in range(3):  # a load from disk sometimes stalls
            self.call("Page.navigate", url=url)
            until = time.monotonic() + 20
            while not self.loaded and time.monotonic() < until:
                self.receive(1)
            if self.loaded:
                return
        raise TimeoutError(f"{url} does not load")

    def evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"still false: {expression}"
            self.receive(0.05)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(image["data"]))
