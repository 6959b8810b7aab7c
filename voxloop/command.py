"""What every command is made of: the application, its options, how it fails, how it starts Spark and opens a home."""

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, ParamSpec

import typer

from catalog.errors import VoxloopError
from voxloop import console
from voxloop.errors import FrontDoorError
from voxloop.settings import Settings, read

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog import Archive

__all__ = ["HomeOption", "JsonOption", "app", "existing", "guarded", "open_archive", "port", "spark_session"]

app = typer.Typer(
    help="The label, train and serve loop for medical images.", no_args_is_help=True, pretty_exceptions_enable=False
)

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder with all state (VOXLOOP_HOME, ./.voxloop).")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]

P = ParamSpec("P")


def port(given: str) -> int:
    """The port that an option names; typer.BadParameter where it names none."""
    if not (given.isascii() and given.isdecimal() and int(given) <= 65535):
        raise typer.BadParameter(f"{given!r} is no port: a port is a number from 0 to 65535, and 0 takes a free one")
    return int(given)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A user's mistake or a full disk becomes one line and status 1, Ctrl-C one line and status 130.

    Any other exception is a bug, and shows its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except VoxloopError as problem:
            console.error(str(problem))
            if kwargs.get("json") and not console.emitted():
                told = {"problem": problem.problem, "about": problem.about, "remedy": problem.remedy}
                console.emit({"error": told})
        except typer.Exit as end:
            _leave(end.exit_code)
        except KeyboardInterrupt:
            console.error("stopped; run the same command again to go on where it was")
            _leave(130)
        except Exception as problem:
            if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                console.error(f"{problem.filename or 'the disk'}: {problem.strerror} (make room or choose another --home)")
            else:
                traceback.print_exc()
        else:
            _leave(0)
        _leave(1)

    return run


def _leave(status: int) -> NoReturn:
    """End now: no thread that still computes is waited for, no library's farewell is printed; servers were stopped, or end
    with this process (voxloop.child)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def spark_session(settings: Settings, *, warm: bool = True) -> "Iterator[SparkSession]":
    from voxloop.spark import start

    with console.stage("start Spark"):
        spark = start(settings, warm=warm)
    interrupted = False
    try:
        yield spark
    except KeyboardInterrupt:
        interrupted = True  # in the middle of a call to Java, which would not understand the next; it ends with this process
        raise
    finally:
        if not interrupted:
            spark.stop()


def open_archive(settings: Settings) -> "Archive":
    from catalog import Archive

    archive = Archive(settings.home, index_url=settings.index_url or None)
    for line in archive.finish():
        console.note(f"  finished after a crash: {line}")
    return archive


def existing(home: Path | None) -> Settings:
    """The settings of a home that is there; FrontDoorError where none is, so that a slip is not taken for an empty archive."""
    settings = read(home)
    if not any((settings.home / made).is_dir() for made in ("tables", "run")):  # by what takes files in, by voxloop up
        raise FrontDoorError("no Voxloop home here", about=str(settings.home), remedy="name it with --home or VOXLOOP_HOME")
    return settings
