"""What a command shows: progress and tables on standard error, one JSON line at the end of standard output."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from catalog.progress import Progress as Report

__all__ = ["emit", "emitted", "error", "note", "plain", "records", "stage", "stop", "table"]

_screen = Console(stderr=True, highlight=False)
_stopping = threading.Event()
_emitted = threading.Event()


def stop() -> None:
    """End every stage that still reports progress, in whatever thread, at its next report."""
    _stopping.set()


def _unless_stopped(report: Report) -> Report:
    def reported(done: int, total: int) -> None:
        if _stopping.is_set():
            raise SystemExit(130)
        report(done, total)

    return reported


def emitted() -> bool:
    """Whether the JSON object was written."""
    return _emitted.is_set()


def note(text: str) -> None:
    """One line for the person who watches, never broken: it may hold a command to copy."""
    _screen.print(text, soft_wrap=True)


def records(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows on standard output: a table where it fits the screen, else a block a row."""
    screen = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    shown = Table()
    for name in rows[0] if rows else ():
        shown.add_column(str(name), no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(_short(_cell(value), 80)) for value in row.values()))
    needed = Measurement.get(screen, screen.options.update(max_width=100_000), shown).maximum
    if shown.columns and needed <= screen.width:
        screen.print(shown)
        return
    for row in rows:
        width = max(map(len, row))
        print("\n".join(f"{name:{width}}  {_short(_cell(value), 200)}" for name, value in row.items()), end="\n\n")


def _cell(value: Any) -> str:
    """A value on one line; nothing where there is none."""
    if isinstance(value, list | tuple):
        return ", ".join(_cell(part) for part in value)
    return "" if value is None else " ".join(str(value).split())


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text)} characters)"


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
    _emitted.set()
    print(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY, default=str).decode(), flush=True)


@contextmanager
def stage(title: str) -> Iterator[Report]:
    """A step of a long command: a bar where a person watches, a line at its end (and every 15 s) where a log does."""
    started = time.perf_counter()
    if _screen.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=_screen, transient=True) as bars:
            task = bars.add_task(title, total=None)
            yield _unless_stopped(lambda done, total: bars.update(task, completed=done, total=total))
    else:
        yield _unless_stopped(_logged(title))
    note(f"  {title}  [dim]{time.perf_counter() - started:.1f} s[/dim]")


def _logged(title: str) -> Report:
    last = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 15:
            last = time.perf_counter()
            note(f"  {title}: {done} of {total}")

    return report
