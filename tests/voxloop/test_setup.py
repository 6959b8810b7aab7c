"""Set-up says how far it is while it goes on."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = """#!/bin/sh
case "$*" in
  *requirements.lock*)
    for i in $(seq 1 13); do echo "Collecting a$i==1"; echo "  Using cached a$i"; done
    for i in $(seq 14 25); do echo "Requirement already satisfied: a$i==1 in ./lib"; done
    read -r _ <"$GO"
    echo "Installing collected packages: a1"
    ;;
esac
"""


def test_each_line_is_there_while_pip_goes_on(tmp_path: Path) -> None:
    """A pip that stops after 25 of 30 packages until what set-up has said by then was read."""
    for folder in ("scripts", "env/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts" / "setup")
    (tmp_path / "requirements.lock").write_text("".join(f"a{i}==1\n" for i in range(1, 31)))
    (tmp_path / "env/bin/python").write_text(PIP)
    (tmp_path / "env/bin/python").chmod(0o755)
    os.mkfifo(tmp_path / "go")
    environment = {**os.environ, "GO": str(tmp_path / "go")}
    command = [str(tmp_path / "scripts" / "setup"), "env"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as running:
        late = threading.Timer(60, lambda: os.killpg(running.pid, 9))
        late.start()
        assert running.stderr is not None
        assert "Installing 30 packages" in running.stderr.readline()
        assert [running.stderr.readline() for _ in range(2)] == ["    1 of 30  a1==1\n", "   25 of 30  a25==1\n"]
        (tmp_path / "go").write_text("go\n")
        assert running.stderr.read() == "  unpacking (a few minutes)\nSet-up is complete.\n"
        late.cancel()
    assert running.returncode == 0
