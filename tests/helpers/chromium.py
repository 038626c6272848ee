"""A headless Chromium, driven through ChromeDriver by the WebDriver protocol; tests are skipped where there is none."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, address, profile):
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._at = f"{address}/session"
        self._at += "/" + self._ask("POST", "", {"capabilities": wanted})["sessionId"]

    def _ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self._at + path, data, method=method), timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, url):
        self._ask("POST", "/url", {"url": url})

    def script(self, text, *arguments):
        """Run JavaScript in the page; what it returns."""
        return self._ask("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def wait_for(self, condition, timeout_s=60.0):
        """Wait until a JavaScript expression is true; returns its value."""
        end_s = time.monotonic() + timeout_s
        while not (value := self.script(f"return {condition}")):
            assert time.monotonic() < end_s, f"never so: {condition}; the page: {self.text()}"
            time.sleep(0.05)
        return value

    def text(self):
        return self.script("return document.body.innerText")

    def protocol(self, command, **parameters):
        """Chrome's own protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def emulate(self, *, width=1280, height=900, dark=False):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.protocol("Emulation.setEmulatedMedia", features=[scheme])
        self.protocol(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def complaints(self):
        """What the browser's console says, errors of the page among it."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def close(self):
        self._ask("DELETE", "")


@contextlib.contextmanager
def chromium(folder):
    """A browser whose profile is in a folder; skips the test where Chromium or its driver is not installed."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install chromium chromium-driver)")
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            for line in driver.stdout:
                if found := re.search(r"started successfully on port (\d+)", line):
                    break
            browser = Browser(f"http://127.0.0.1:{found[1]}", folder / "profile")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
