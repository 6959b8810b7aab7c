"""Which code this is: the commit of the checkout, with a mark where files differ from it, or the package's version."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["code_revision"]


def code_revision() -> str:
    """A commit (40 hex digits, ``+changed`` behind it where tracked files differ), else ``voxloop VERSION``."""
    folder = Path(__file__).parent.parent
    if (folder / ".git").exists():
        try:
            commit = _git(folder, "rev-parse", "HEAD")
            return commit + ("+changed" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
        except (OSError, subprocess.SubprocessError):
            pass
    try:
        return f"voxloop {version('voxloop')}"
    except PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
