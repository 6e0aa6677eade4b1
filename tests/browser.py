"""Chromium without a screen and without a network, told what to do through a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Codes of the keys that are pressed here, as the protocol wants them.
KEYS = {
    "Tab": 9,
    "Home": 36,
    "End": 35,
    "ArrowLeft": 37,
    "ArrowRight": 39,
    "ArrowDown": 40,
    " ": 32,
}


def executable() -> str | None:
    """Where Chromium is, if it is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page of a running browser (https://chromedevtools.github.io/devtools-protocol)."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._count, self._rest, self._session = 0, b"", ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, file: Path, width: int = 1280, *, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it is there; narrow ones are telephones."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=file.resolve().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        done = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press and let go of one key."""
        names = {"key": key, "code": "Space" if key == " " else key}
        for kind in ("rawKeyDown", "keyUp"):
            code = {"windowsVirtualKeyCode": KEYS[key]}
            self.send("Input.dispatchKeyEvent", type=kind, **names, **code)
            if key == " " and kind == "rawKeyDown":
                self.send("Input.dispatchKeyEvent", type="char", text=" ", **names)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser has gone"
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


def _out_of_the_way(pipe: int) -> int:
    """The same end of a pipe under a number above 9: 3 and 4 are needed, and may be its own."""
    moved = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(pipe)
    return moved


@contextmanager
def browse(profile: Path) -> Iterator[Tab]:
    """A browser with one page, for as long as the block lasts."""
    found = executable()
    assert found is not None
    command_out, command_in = map(_out_of_the_way, os.pipe())
    answer_out, answer_in = map(_out_of_the_way, os.pipe())

    def at_three_and_four() -> None:  # where the browser looks for them
        os.dup2(command_out, 3)
        os.dup2(answer_in, 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    options += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with subprocess.Popen(
        [found, *options],
        preexec_fn=at_three_and_four,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(command_out)
        os.close(answer_in)
        try:
            yield Tab(command_in, answer_out)
        finally:
            # With its pipe the browser ends, and its helpers with it; killed, it would leave them
            # behind, writing into a folder that is being removed.
            os.close(command_in)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
            os.close(answer_out)
