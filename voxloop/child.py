"""A child process that never outlives its parent: ``python -m voxloop.child FD COMMAND…``.

FD is the reading end of a pipe whose writing end only the parent holds. When the parent ends, however it ends, the pipe
closes, and the command with all that it started is told to stop, then killed. What lost its own parent is adopted here, so that
nothing escapes by being orphaned.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import psutil

__all__ = ["main"]

GRACE_S = 10.0
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def main() -> int:
    """Run the command, stop it and all that it started when the parent is gone; the command's exit status."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(pipe, False)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    process = subprocess.Popen(command)

    def follow() -> None:
        os.read(pipe, 1)
        stopping.set()

    threading.Thread(target=follow, daemon=True).start()
    while process.poll() is None and not stopping.wait(0.2):
        pass
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgid(0), signal.SIGTERM)
    try:
        status = process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        status = -signal.SIGKILL
    _end(0.5 if status == -signal.SIGKILL else 3.0)
    return status


def _end(grace: float) -> None:
    """Stop every process that is left below this one."""
    left = psutil.Process().children(recursive=True)
    for how in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                how(process)
        _, left = psutil.wait_procs(left, timeout=grace)


if __name__ == "__main__":
    sys.exit(main())
