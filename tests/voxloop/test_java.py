"""Java is found on the machine, or carried by a package; an old one is passed over."""

import os
import subprocess
from pathlib import Path

import pytest

from voxloop.java import java_home


def fake_java(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return folder


def test_takes_the_machines_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path, "21.0.1")))
    assert java_home() == tmp_path


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.2"])
def test_passes_over_an_old_one_and_brings_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    old = fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{old / 'bin'}{os.pathsep}/bin")
    found = java_home()
    said = subprocess.run(
        [found / "bin" / "java", "--add-modules=jdk.incubator.vector", "-version"], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert "openjdk version" in said.stderr
