"""One command at a time plays rounds in a home."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxloop.errors import FrontDoorError

__all__ = ["held", "only_one"]


def held(home: Path) -> bool:
    """Whether a process is inside ``only_one(home)``."""
    try:
        with (home / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold HOME/lock; the system lets go of it when this process ends, however it ends.

    Raises FrontDoorError where another process holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            remedy = "wait for it, stop it, or choose another --home"
            raise FrontDoorError(f"process {lock.read().strip()} works in this home", about=str(home), remedy=remedy) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
