"""A child process that never outlives its parent: ``python -m voxloop.child FD COMMAND…``.

FD is the reading end of a pipe whose writing end only the parent holds. When the parent ends, however it ends, the pipe
closes and the whole process group of the child is told to stop, then killed.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil

__all__ = ["main"]

GRACE_S = 5.0


def main() -> int:
    """Run the command, stop its process group when the parent is gone; the command's exit status."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(pipe, False)
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
    if _others():
        time.sleep(0.5 if status != -signal.SIGKILL else 0)
        os.killpg(os.getpgid(0), signal.SIGKILL)
    return status


def _others() -> bool:
    """Whether another process of this group still lives."""
    own = os.getpgid(0)
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and os.getpgid(process.pid) == own and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (OSError, psutil.Error):
            continue
    return False


if __name__ == "__main__":
    sys.exit(main())
