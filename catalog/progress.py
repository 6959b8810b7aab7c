"""How long work reports its progress: a callable that is given (done, total)."""

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[int, int], None]
