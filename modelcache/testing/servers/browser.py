"""A real browser, headless: Debian's chromium, driven over WebDriver by chromium-driver (W3C WebDriver, JSON over HTTP)."""

from __future__ import annotations

import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from modelcache.patience import Deadline
from modelcache.testing.servers.ports import LOOPBACK, free_ports
from modelcache.testing.servers.process import OwnedProcess, program, started

START_DEADLINE_S = 60.0
CALL_S = 60.0
POLL_S = 0.1
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Source: W3C WebDriver, Elements: the web element identifier."""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server",
)  # fmt: skip


class Browser:
    """One window, without a profile; gone with its block."""

    def __init__(self, directory: Path) -> None:
        """`directory`: where its log stays."""
        self._directory = directory

    def __enter__(self) -> Self:
        """Raises ServerFailed: it is not installed, or doesn't start."""
        self._process = started(self._launch, self._ready, deadline_s=START_DEADLINE_S)
        options = {"binary": program("chromium"), "args": [*FLAGS, f"--user-data-dir={self._own / 'profile'}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            self._session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", f"/session/{self._session}")
        finally:
            self._process.stop()

    def open(self, url: str) -> None:
        self._in_session("POST", "/url", {"url": url})

    def text(self, selector: str) -> str:
        """What is to be seen of an element. Raises AssertionError: there is none."""
        return str(self._in_session("GET", f"/element/{self._element(selector)}/text"))

    def write(self, selector: str, text: str) -> None:
        self._in_session("POST", f"/element/{self._element(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._in_session("POST", f"/element/{self._element(selector)}/click", {})

    def run(self, script: str) -> Any:
        """What a function of this body returns in the page."""
        return self._in_session("POST", "/execute/sync", {"script": script, "args": []})

    def complaints(self) -> list[str]:
        """What the console has said since it was last asked: errors, and what the page's policy refused."""
        return [f"{each['level']}: {each['message']}" for each in self._in_session("POST", "/se/log", {"type": "browser"})]

    def until(self, holds: Callable[[], bool], what: str, *, deadline_s: float = 30.0) -> None:
        """Poll until something holds. Raises AssertionError: it did not in time."""
        deadline = Deadline.after(deadline_s)
        while not holds():
            assert not deadline.passed, f"waited {deadline_s:g} s for {what}; the page shows: {self.text('body')}"
            time.sleep(POLL_S)

    def _element(self, selector: str) -> str:
        return str(self._in_session("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT])

    def _launch(self) -> OwnedProcess:
        [self._port] = free_ports(1)
        self._own = Path(tempfile.mkdtemp(prefix="chromium-"))  # short, for its socket is below; its process's keeper removes it
        environ = {"HOME": str(self._own), "TMPDIR": str(self._own), "LANG": "C.UTF-8"}
        command = [program("chromedriver"), f"--port={self._port}", "--allowed-ips=127.0.0.1"]
        return OwnedProcess(
            command,
            log=self._directory / "chromedriver.log",
            leftovers=[str(self._own)],
            environ={**environ, "PATH": os.environ.get("PATH", os.defpath)},
        )

    def _ready(self) -> bool:
        try:
            return bool(self._ask("GET", "/status")["ready"])
        except OSError:
            return False

    def _in_session(self, method: str, path: str, body: object = None) -> Any:
        return self._ask(method, f"/session/{self._session}{path}", body)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json; charset=utf-8"}
        request = urllib.request.Request(f"http://{LOOPBACK}:{self._port}{path}", data=data, method=method, headers=headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=CALL_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{method} {path}: {error.read().decode(errors='replace')[:500]}") from None
