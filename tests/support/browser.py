"""A headless Chromium, driven through its own driver (the W3C WebDriver protocol is JSON over HTTP): nothing to install
but Debian's `chromium` and `chromium-driver`, or what other systems call them."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.ports import free_port

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key for a reference to an element


def find_programs() -> tuple[str, str] | None:
    """Paths of browser and driver, or None if one is missing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window."""

    def __init__(self, address: str, browser: str, profile: pathlib.Path, size: tuple[int, int]):
        self._address = address
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        options = {"binary": browser, "args": flags}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._session = f"/session/{self._call('POST', '/session', wanted)['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps({} if body is None else body).encode() if method == "POST" else None
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {json.load(error)['value']['message'][:500]}") from error

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str, *, seconds: float = 240.0) -> None:
        """Until a script's condition holds."""
        deadline = time.monotonic() + seconds
        while not self.run(f"return !!({condition})"):
            assert time.monotonic() < deadline, f"never came true: {condition}"
            time.sleep(0.1)

    def choose_file(self, selector: str, path: pathlib.Path) -> None:
        """As a person does in the dialog of `<input type=file>`."""
        found = self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        self._call("POST", f"{self._session}/element/{found[_ELEMENT]}/value", {"text": str(path)})

    def move_mouse(self, x: int, y: int) -> None:
        moves = [{"type": "pointerMove", "duration": 50, "x": x, "y": y, "origin": "viewport"}]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        self._call("POST", f"{self._session}/actions", {"actions": [pointer]})

    def screenshot(self, path: pathlib.Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        self._call("DELETE", self._session)


@contextlib.contextmanager
def browsing(profile: pathlib.Path, *, size: tuple[int, int] = (1280, 1000)) -> Iterator[Browser]:
    """A browser with an empty profile; browser and driver end with the block."""
    programs = find_programs()
    assert programs, "no browser"
    port = free_port()
    driver = subprocess.Popen([programs[1], f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/status", timeout=5) as response:
                if json.load(response)["value"]["ready"]:
                    break
            time.sleep(0.1)
        browser = Browser(address, programs[0], profile, size)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait(30)
