"""Chromium without a window, from Debian's package, told what to do through its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.peers.debian import unpacked

PROGRAM = "usr/lib/chromium/chromium-headless-shell"
SECONDS = 60
Scheme = Literal["light", "dark"]
_OPTIONS = (
    "--no-sandbox",  # which root needs, as in containers; pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """A page that is shown."""

    def __init__(self, browser: "_Pipe", session: str) -> None:
        self._browser = browser
        self._session = session
        self.requests: list[str] = []
        """Addresses that were asked for."""
        self.complaints: list[str] = []
        """What the browser's console says: refused loads, errors."""

    def open(self, path: Path, *, scheme: Scheme = "light", width: int = 1100) -> None:
        """Show a file."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=path.absolute().as_uri())
        while (event := self._browser.event()).get("method") != "Page.loadEventFired":
            self._take(event)
        self._call("Runtime.evaluate", expression="0")  # whatever was said before has come by now
        for event in self._browser.waiting():
            self._take(event)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, evaluated by the debugger."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"Chromium: {found['exceptionDetails']}")
        return found["result"].get("value")

    def picture(self, *, height: int | None = None, top: int = 0) -> bytes:
        """Return the page as PNG, all of it or so many pixels of it from `top` on."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "scale": 1}
        clip["height"] = height or size["height"] - top
        found = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def _take(self, event: dict[str, Any]) -> None:
        method, facts = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(facts["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.complaints.append(json.dumps(facts))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)


@contextmanager
def page() -> Iterator[Page]:
    """Yield a page of a browser of its own, which is ended with the block."""
    tree = unpacked("chromium-headless-shell", PROGRAM)
    libraries = sorted({str(path.parent) for path in tree.rglob("*.so*")})
    given = [os.environ["LD_LIBRARY_PATH"]] if "LD_LIBRARY_PATH" in os.environ else []
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join([*libraries, *given])}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()
        # The protocol wants descriptors 3 and 4, which bash can give it; sh knows those below 10 only.
        command = ["bash", "-c", 'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"', str(tree / PROGRAM), *_OPTIONS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            env=environment | {"IN": str(to_browser), "OUT": str(to_us)},
            pass_fds=(to_browser, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        try:
            browser = _Pipe(from_us, from_browser)
            target = browser.call("Target.createTarget", url="about:blank")["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            yield Page(browser, session)
        finally:
            process.kill()
            process.wait(SECONDS)
            os.close(from_us)
            os.close(from_browser)


class _Pipe:
    """Messages of the protocol: JSON, each ended by a zero byte."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write_to = write_to
        self._read_from = read_from
        self._rest = b""
        self._events: list[dict[str, Any]] = []
        self._calls = 0

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Return the result of a method; events that come before it are kept."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        message |= {} if session is None else {"sessionId": session}
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                break
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"Chromium: {method}: {answer['error']}")
        result = answer["result"]
        assert isinstance(result, dict)
        return result

    def event(self) -> dict[str, Any]:
        """Return the next event."""
        return self._events.pop(0) if self._events else self._read()

    def waiting(self) -> list[dict[str, Any]]:
        """Return the events that came."""
        events, self._events = self._events, []
        return events

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read_from, 1 << 16)
            if not more:
                raise RuntimeError("Chromium ended by itself")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        parsed = json.loads(message)
        assert isinstance(parsed, dict)
        return parsed
