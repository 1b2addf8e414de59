"""A headless Chromium for tests, without internet: the DevTools protocol over its pipe, with the standard library.

    with Browser() as browser:
        page = browser.open(path.as_uri(), width=390)
        page.wait("document.querySelectorAll('svg').length > 3", 10)
        assert page.errors == []
        assert page.outside == []

Only 127.0.0.1 can be reached; whatever else a page asks for fails at once, and stands in `requests` all the same.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is small
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
ANSWER = 60
"""Seconds for one answer of the browser, before it is taken for dead."""

KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    " ": (32, " "),
    "Home": (36, ""),
    "End": (35, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
}
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


class Browser:
    """Starts Chromium; skips the test, with the reason, where there is none. Not for several threads."""

    def __enter__(self) -> Self:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            pytest.skip(f"needs Chromium, found none of {', '.join(NAMES)}")
        self._home = tempfile.mkdtemp(prefix="splitnet-browser-")
        self._pages: dict[str, Page] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._number, self._rest = 0, b""
        self._start(found)
        return self

    def _start(self, executable: str) -> None:
        """Chromium reads commands from its file 3 and writes to its file 4, each ended by a zero byte."""
        to_read, self._write = _pipe()
        self._read, to_write = _pipe()
        log = str(Path(self._home, "log"))
        actions = [
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, to_read, 3),
            (os.POSIX_SPAWN_DUP2, to_write, 4),
        ]
        words = [executable, *FLAGS, f"--user-data-dir={self._home}", "about:blank"]
        self._pid = os.posix_spawn(executable, words, dict(os.environ), file_actions=actions, setpgroup=0)
        os.close(to_read)
        os.close(to_write)

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self.call("Browser.close")
        if not self._ended(5):
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)  # the group that it was started in
            self._ended(5)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._home, ignore_errors=True)

    def _ended(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitpid(self._pid, os.WNOHANG)[0]:
                return True
            time.sleep(0.02)
        return False

    def open(self, url: str, width: int = 1280, height: int = 800, offline: bool = False) -> "Page":
        """A new tab. `offline` cuts 127.0.0.1 too. Returns once the document's own files are loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        self._pages[session] = page
        page.resize(width, height)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.watch(session)
        if offline:
            page.call("Network.emulateNetworkConditions", offline=True, latency=0, **_UNLIMITED)
        page.go(url)
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the protocol. RuntimeError if the browser refuses it."""
        number = self.send(method, session, **parameters)
        until = time.monotonic() + ANSWER
        while number not in self._answers:
            self.listen(until - time.monotonic())
            if time.monotonic() > until:
                raise TimeoutError(f"the browser did not answer {method} in {ANSWER} s")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self._write, text) :]
        return self._number

    def listen(self, seconds: float) -> None:
        """Take in what the browser says, for at most so long."""
        if not select.select([self._read], [], [], max(0.0, seconds))[0]:
            return
        chunk = os.read(self._read, 1 << 20)
        if not chunk:
            raise RuntimeError("the browser has ended: " + Path(self._home, "log").read_text("utf-8", "replace")[-800:])
        *whole, self._rest = (self._rest + chunk).split(b"\0")
        for message in map(json.loads, whole):
            if "id" in message:
                self._answers[message["id"]] = message
            elif page := self._pages.get(message.get("sessionId")):
                page.heard(message)

    def adopt(self, session: str, page: "Page") -> None:
        """What this worker or frame of another process says belongs to that page."""
        self._pages[session] = page


class Page:
    """A tab. What it says is taken in while something is asked of it or waited for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.requests: list[str] = []
        """Every address asked for, by workers and frames too."""
        self.errors: list[str] = []
        """Exceptions, console.error, and what failed to load: a line each."""
        self._loaded = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def watch(self, session: str) -> None:
        """Hear of the requests of a page, frame or worker, from the first one on."""
        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        for method, parameters in (
            ("Network.enable", {}),
            ("Runtime.enable", {}),
            ("Target.setAutoAttach", attach),
            ("Runtime.runIfWaitingForDebugger", {}),
        ):
            self.browser.send(method, session, **parameters)

    def heard(self, message: dict[str, Any]) -> None:
        method, told = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(_thrown(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(x.get("value", x.get("description"))) for x in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(" ".join((told["entry"]["text"], told["entry"].get("url", ""))).strip())
        elif method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Target.attachedToTarget":
            self.browser.adopt(told["sessionId"], self)
            self.watch(told["sessionId"])

    @property
    def outside(self) -> list[str]:
        """Requests that left this machine, or would have."""
        return [
            url
            for url in self.requests
            if urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).hostname != "127.0.0.1"
        ]

    def go(self, url: str, seconds: float = 60) -> None:
        """Navigate, and wait for the load event."""
        self._loaded = False
        if text := self.call("Page.navigate", url=url).get("errorText"):
            raise RuntimeError(f"{url}: {text}")
        until = time.monotonic() + seconds
        while not self._loaded:
            self.browser.listen(until - time.monotonic())
            if time.monotonic() > until:
                raise TimeoutError(f"{url} did not load in {seconds} s")

    def evaluate(self, js: str) -> Any:
        """The value of an expression (a promise's result), as Python knows it from JSON."""
        told = self.call("Runtime.evaluate", expression=js, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in told:
            raise RuntimeError(f"{js[:200]}: {_thrown(told['exceptionDetails'])}")
        return told["result"].get("value")

    def wait(self, js: str, seconds: float = 10) -> Any:
        """Evaluate until the expression is truthy; its value, or True for a part of the page. TimeoutError if never."""
        plain = f"Promise.resolve({js}).then(value => value?.nodeType ? true : value)"
        until = time.monotonic() + seconds
        while not (value := self.evaluate(plain)):
            if time.monotonic() > until:
                raise TimeoutError(f"in {seconds} s never true: {js[:300]}; errors: {self.errors[-5:]}")
            self.browser.listen(0.1)
        return value

    def settle(self, seconds: float) -> None:
        """Listen for so long, whatever comes."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.browser.listen(left)

    def click(self, selector: str) -> None:
        """A real click of the mouse in the middle of the first element of this CSS selector."""
        x, y = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2] }})(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def press(self, key: str) -> None:
        """One key: "a", "+", "Enter", "ArrowLeft"; "Shift+Tab" holds one down."""
        *held, name = key.split("+") if len(key) > 1 and not key.endswith("++") else [key]
        modifiers = sum(MODIFIERS[modifier] for modifier in held)
        code, text = KEYS.get(name, (ord(name.upper()[0]), name))
        both = {"key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if len(name) > 1:
            both["code"] = name
        typed = {"text": text} if text and modifiers in (0, MODIFIERS["Shift"]) else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **both, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **both)

    def dark(self, on: bool = True) -> None:
        """What the system asks for: dark colours, or light ones."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, path: Path | str, full: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full, **self._clip(full))
        Path(path).write_bytes(base64.b64decode(picture["data"]))

    def _clip(self, full: bool) -> dict[str, Any]:
        if not full:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}


_UNLIMITED = {"downloadThroughput": -1, "uploadThroughput": -1}


def _thrown(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"]).splitlines()[0]


def _pipe() -> tuple[int, int]:
    """Both ends well above 4, so that giving them to the child as 3 and 4 overwrites neither."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
