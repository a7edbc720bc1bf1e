"""A command that does not outlive the process that started it, even one that is killed: `python guard.py COMMAND …`.

The starter holds the other end of standard input and never writes. When it ends, however it ends, the system closes
that end; then the whole process group of this guard is ended, for which it must be one of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 3.0  # seconds from SIGTERM to SIGKILL


def main(command: list[str]) -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # it ends when the command has; ignoring would be inherited
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=lambda: os._exit(process.wait() and 1), daemon=True).start()
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
