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

__all__ = ["main"]

GRACE_S = 5.0


def main() -> int:
    """Run the command, stop its process group when the parent is gone; the command's exit status."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(pipe, False)
    process = subprocess.Popen(command)
    stopping = threading.Event()

    def stop(*_: object) -> None:
        if not stopping.is_set():
            stopping.set()
            process.terminate()

    def follow() -> None:
        os.read(pipe, 1)
        stop()
        time.sleep(GRACE_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=follow, daemon=True).start()
    status = process.wait()
    if stopping.is_set():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpgid(0), signal.SIGTERM)
    return status


if __name__ == "__main__":
    sys.exit(main())
