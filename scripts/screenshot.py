"""A web page as a PNG: `python scripts/screenshot.py report.html report.png --wait "window.ready"`.

It drives headless Chromium over the DevTools protocol through a pipe and takes the picture when a JavaScript
expression comes true, since a page that draws itself is not done when it is loaded. It needs only Python and
a Chromium; where there is none it says so and exits with status 77 (skipped).
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
LOADED = "document.readyState === 'complete'"
SKIPPED = 77


class BrowserError(Exception):
    """The page did not become what was waited for, or the browser refused a command."""


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab; `read` and `write` are the ends of the browser's pipes."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.console: list[str] = []  # errors that the page reported
        self.requests: list[str] = []  # addresses that it asked for
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and return its result."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(time.monotonic() + 60)
            self._note(answer.get("method"), answer.get("params", {}))
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _note(self, event: str | None, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.console.append(" ".join(str(part.get("value", part)) for part in told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.console.append(told["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise BrowserError("the browser does not answer.")
            if not (received := os.read(self._read, 1 << 20)):
                raise BrowserError("the browser has ended.")
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, address: str, wait: str | None = None, timeout: float = 30.0) -> None:
        """Go to a URL or file, then wait until the page is loaded and the expression `wait` is true."""
        url = address if re.match(r"[a-z]{2,}:", address) else Path(address).resolve().as_uri()
        # from a blank page, lest the page before fulfil the wait (addresses may differ after # only)
        self.call("Page.navigate", url="about:blank")
        failure = self.call("Page.navigate", url=url).get("errorText")
        if failure:
            raise BrowserError(f"{url}: {failure}")
        self.wait(LOADED, timeout)
        if wait:
            self.wait(wait, timeout)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(
                f"{expression}: {details.get('exception', {}).get('description', details['text'])}"
            )
        return answer["result"].get("value")

    def wait(self, expression: str, timeout: float = 30.0) -> None:
        """Return once `expression` is true; an exception in it counts as not yet."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with suppress(BrowserError):
                if self.evaluate(expression):
                    return
            time.sleep(0.1)
        raise BrowserError(f"after {timeout:g} s still not true: {expression}")

    def appearance(
        self, width: int, height: int, scale: float = 1.0, dark: bool = False, paper: bool = False
    ) -> None:
        """Window in CSS pixels, image pixels to each of them, color scheme, and screen or print layout."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme])

    def mouse(self, x: float, y: float, click: bool = False) -> None:
        """Move the mouse to a point of the window, and click there if asked to."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def offline(self) -> None:
        """Cut the page off from every network, this machine's own servers included."""
        self.call("Network.enable")
        self.call(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write what the window shows, or the `whole` page, as a PNG."""
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(image))


@contextmanager
def browser(chromium: str) -> Iterator[Page]:
    """A fresh browser with one tab; nothing of it is left after the block."""
    to_read, to_write = os.pipe(), os.pipe()
    # the browser reads its descriptor 3 and writes 4; ours lie well above, so that neither is overwritten
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_write[0], to_read[1])]
    with tempfile.TemporaryDirectory(prefix="screenshot-", ignore_cleanup_errors=True) as profile:
        dup = f"os.dup2({theirs[0]}, 3); os.dup2({theirs[1]}, 4)"
        shim = f"import os, sys; {dup}; os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", shim, chromium, *FLAGS, f"--user-data-dir={profile}"]
        silent = subprocess.DEVNULL
        process = subprocess.Popen(
            command, pass_fds=theirs, stdin=silent, stdout=silent, stderr=silent, start_new_session=True
        )
        for end in (to_write[0], to_read[1], *theirs):
            os.close(end)
        try:
            yield Page(to_read[0], to_write[1])
        finally:
            os.close(to_write[1])  # the browser ends when its pipe does
            os.close(to_read[0])
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/screenshot.py", description="A web page as a PNG.")
    parser.add_argument("page", help="URL or HTML file")
    parser.add_argument("image", type=Path, help="the PNG to write")
    parser.add_argument("--wait", help="JavaScript expression that is true when the page is ready")
    parser.add_argument("--size", default="1440x900", help="window in CSS pixels (default: 1440x900)")
    parser.add_argument("--scale", type=float, default=1.0, help="image pixels to a CSS pixel (default: 1)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait (default: 30)")
    parser.add_argument("--dark", action="store_true", help="prefer dark colors")
    parser.add_argument("--print", action="store_true", dest="paper", help="the layout for paper")
    parser.add_argument("--whole", action="store_true", help="the whole page, not the window alone")
    parser.add_argument("--offline", action="store_true", help="with no network")
    options = parser.parse_args(arguments)
    chromium = find_chromium()
    if chromium is None:
        print(f"skipped: no Chromium here (looked for {', '.join(NAMES)}).", file=sys.stderr)
        return SKIPPED
    width, height = (int(number) for number in options.size.split("x"))
    try:
        with browser(chromium) as page:
            page.appearance(width, height, options.scale, options.dark, options.paper)
            if options.offline:
                page.offline()
            page.open(options.page, options.wait, options.timeout)
            page.picture(options.image, options.whole)
    except BrowserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
