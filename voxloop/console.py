"""What a command shows: progress and tables on standard error, one JSON line at the end of standard output."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from catalog.progress import Progress as Report

__all__ = ["emit", "error", "note", "plain", "stage", "table"]

_screen = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """One line for the person who watches."""
    _screen.print(text)


def plain(text: str) -> None:
    """Text for the person who watches, as it is."""
    print(text, file=sys.stderr)


def error(text: str) -> None:
    """One line that says what went wrong and what to do."""
    print(f"Error: {text}", file=sys.stderr)


def table(renderable: Any) -> None:
    """A rich table."""
    _screen.print(renderable)


def emit(result: Mapping[str, Any]) -> None:
    """The command's result: one JSON object on one line of standard output."""
    print(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY, default=str).decode(), flush=True)


@contextmanager
def stage(title: str) -> Iterator[Report]:
    """A step of a long command: a bar where a person watches, a line at its end (and every 15 s) where a log does."""
    started = time.perf_counter()
    if _screen.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_screen, transient=True) as bars:
            task = bars.add_task(title, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
    else:
        yield _logged(title)
    note(f"  {title}  [dim]{time.perf_counter() - started:.1f} s[/dim]")


def _logged(title: str) -> Report:
    last = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 15:
            last = time.perf_counter()
            note(f"  {title}: {done} of {total}")

    return report
