"""The commands that bring published weights into a home, once their licence is accepted."""

import getpass
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from catalog.progress import Progress
from voxloop import console
from voxloop.command import HomeOption, JsonOption, app, guarded
from voxloop.errors import FrontDoorError
from voxloop.settings import read

__all__: list[str] = []

MEGABYTE = 1 << 20

weights_app = typer.Typer(help="Bring published weights into the home.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")


@weights_app.command()
@guarded
def vista3d(
    accept_license: Annotated[bool, typer.Option("--accept-license", help="You have read the licence and accept it.")] = False,
    url: Annotated[str | None, typer.Option(help="Another address of the file; default: where it is published.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file that was carried in, instead of a download.")] = None,
    sha256: Annotated[str | None, typer.Option(help="What the file must have; default: that of the pinned release.")] = None,
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Fetch VISTA3D's weights, for training to start from; an interrupted download goes on where it was."""
    from training.download import sha256_of
    from training.vista_weights import LICENCE, PUBLISHED, accept

    folder = read(home).home / "weights" / "vista3d"
    target, wanted = folder / "model.pt", (sha256 or PUBLISHED.sha256).lower()
    size = 0 if sha256 else PUBLISHED.size
    console.note(f"VISTA3D's weights are under the {LICENCE.name}: {LICENCE.restricts}.")
    console.note(f"  its text: {LICENCE.text}")
    if not accept_license:
        remedy = "read its text; if you accept it, add --accept-license"
        raise FrontDoorError(f"the {LICENCE.name} is not accepted", about="weights of VISTA3D", remedy=remedy)
    accept(folder, _user())
    if target.exists() and sha256_of(target) == wanted:
        console.note("the weights are there already")
    else:
        _bring(target, url or PUBLISHED.url, file, wanted, size)
    console.note(f"next: voxloop train PROJECT --set task=vista3d --weights {target}" + (f" --home {home}" if home else ""))
    if json:
        console.emit({"path": str(target), "sha256": wanted, "size": target.stat().st_size, "licence": LICENCE.name})


def _bring(target: Path, url: str, file: Path | None, sha256: str, size: int) -> None:
    from training.download import fetch

    if file:
        with console.stage(f"copy {file}"):
            _carry(file, target, sha256, size)
        return
    with console.stage(f"download {url}, MB") as report:
        fetch(url, target, sha256=sha256, size=size, progress=_in_megabytes(report))


def _carry(file: Path, target: Path, sha256: str, size: int) -> None:
    """Copy a file that is here, under the same checks as a download."""
    from training.download import checked

    if not file.is_file():
        raise FrontDoorError("no such file", about=str(file), remedy="check the path")
    copied = target.with_name(target.name + ".part")
    shutil.copyfile(file, copied)
    checked(copied, str(file), sha256=sha256, size=size)
    os.replace(copied, target)


def _in_megabytes(report: Progress) -> Progress:
    return lambda done, total: report(done // MEGABYTE, total // MEGABYTE)


def _user() -> str:
    """Who accepts: this machine's name for the user, at its name for itself."""
    name = str(os.getuid())
    with suppress(OSError, KeyError, ImportError):
        name = getpass.getuser()
    return f"{name}@{platform.node()}"
