"""`voxloop up`: the web server, MLflow and the champion's endpoint of a home, until Ctrl-C; `voxloop status`: what runs."""

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import Registry, ServingError
from voxloop import console
from voxloop.access import Rules
from voxloop.endpoint import endpoint_command
from voxloop.errors import FrontDoorError
from voxloop.home import held, only_one
from voxloop.processes import LOOPBACK, answers, free_port, last_line
from voxloop.programs import HOPELESS, Program, Supervisor, states
from voxloop.projects import load, projects_of
from voxloop.settings import Settings
from voxloop.tracking import announce, running_server, server_command, withdraw, without_password
from voxloop.viewer import installed

__all__ = ["serve", "status"]

FIRST_CHAMPION_S = 10 * 365 * 24 * 3600.0
"""Seconds that the endpoint waits for one: until there is one."""


@dataclass(frozen=True)
class Addresses:
    """Where everything is; ``endpoint`` and ``model`` are empty where the home has no project. ``own_mlflow``: it is started
    here, not by another command of the home or elsewhere."""

    host: str
    port: int
    viewer: str
    mlflow: str
    own_mlflow: bool
    endpoint: str
    model: str


def serve(
    settings: Settings, project: Path | None, *, mlflow_port: int, endpoint_port: int, host: str, port: int, json: bool = False
) -> None:
    """Start all, print where they are as soon as the web server and MLflow answer (``json``: the endpoint too), and stay.

    FrontDoorError where the project cannot be told, a port is taken, other machines would reach it without a token, or the web
    server or MLflow does not start.
    """
    projects_of(settings.home, project)  # a file that is wrong is said here, not in a log
    chosen = project or _only_project(settings.home)
    Rules.of(settings, host, port)
    if (running := status(settings.home))["running"]:
        remedy = f"open {running['viewer']}, stop process {running['pid']}, or choose another --home"
        raise FrontDoorError("voxloop up runs in this home already", about=str(settings.home), remedy=remedy)
    if not settings.home.exists():
        console.note(f"made a new home {settings.home}")
    with only_one(settings.home / "run"), ExitStack() as stack:
        at = _addresses(settings, load(chosen).model if chosen else "", host, port, mlflow_port, endpoint_port)
        programs = _programs(settings, at, project)
        environment = {**settings.environment(), "VOXLOOP_TRACKING_URI": at.mlflow}
        supervisor = stack.enter_context(Supervisor(settings.home, programs, environment))
        note = settings.home / "run" / "up.json"
        note.write_text(_dumps(at, supervisor))
        stack.callback(note.unlink, missing_ok=True)
        with console.stage("start the web server and MLflow"):
            supervisor.wait_ready("web")
            if at.own_mlflow:
                supervisor.wait_ready("mlflow")
                announce(settings.home, at.mlflow)
        stack.callback(withdraw, settings.home)
        try:
            if not json:
                _tell(at)
            if not (installed(settings.viewer_folder) / "index.html").is_file():
                console.note("no viewer yet: make viewer fetches it; all else answers")
            console.note("Ctrl-C stops what was started here.")
            lacks = _start_endpoint(supervisor, at)
            if json:  # once, when all that will answer does
                console.emit(_addresses_of(at))
            console.note(f"no endpoint yet: {lacks}" if lacks else f"the endpoint of {at.model} answers")
            if not at.model:
                console.note(f"images come in by voxloop ingest DIR --home {settings.home}, or by Upload in the study list")
            _watch(settings, supervisor, at, endpoint=not lacks)
        except KeyboardInterrupt:
            console.note("stopping")


def _addresses(settings: Settings, model: str, host: str, port: int, mlflow_port: int, endpoint_port: int) -> Addresses:
    """Where each will be; FrontDoorError where a port is taken."""
    port = free_port(port, host)
    mlflow = settings.tracking_uri or running_server(settings.home)
    own = "" if mlflow else f"http://{LOOPBACK}:{free_port(mlflow_port)}"
    endpoint = f"http://{LOOPBACK}:{free_port(endpoint_port)}" if model else ""
    viewer = Rules.of(settings, host, port).public
    return Addresses(host, port, viewer, mlflow or own, bool(own), endpoint, model)


def _programs(settings: Settings, at: Addresses, project: Path | None) -> list[Program]:
    web = [sys.executable, "-m", "voxloop.web", "--host", at.host, "--port", str(at.port)]
    web += ["--endpoint", at.endpoint]
    web += ["--project", str(project.resolve())] if project else []
    secretless = {"VOXLOOP_TOKEN": ""}
    programs = [Program("web", web, f"http://{_near(at.host)}:{at.port}/healthz")]
    if not settings.tracking_uri:  # also where another command's is used: ours follows when that ends
        command = server_command(settings.home, at.mlflow)
        programs.append(Program("mlflow", command, f"{at.mlflow}/health", at.own_mlflow, secretless))
    if at.model:
        command = endpoint_command(at.model, int(at.endpoint.rsplit(":", 1)[1]), wait=FIRST_CHAMPION_S)
        programs.append(Program("endpoint", command, f"{at.endpoint}/ping", False, secretless))
    return programs


def _near(host: str) -> str:
    """Where this machine reaches a server that listens on ``host``."""
    near = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"[{near}]" if ":" in near else near


def _start_endpoint(supervisor: Supervisor, at: Addresses) -> str:
    """Start the endpoint, and wait for it where there is a champion; why it does not answer yet, or ''."""
    if not at.model:
        return "this home has no project; put a file into its projects/ (docs/project.md), then start voxloop up again"
    supervisor.start("endpoint")
    try:
        if Registry(at.mlflow).champion(at.model) is None:
            return f"the model {at.model} has no champion; it starts by itself once one is promoted (voxloop promote)"
        with console.stage(f"start the endpoint of {at.model}"):
            supervisor.wait_ready("endpoint")
    except (ServingError, FrontDoorError) as problem:  # MLflow and the viewer are where it can be mended
        return str(problem)
    return ""


def _tell(at: Addresses) -> None:
    print(f"\nOpen {at.viewer}\n", flush=True)
    addresses = _addresses_of(at)
    mlflow = addresses["mlflow"]
    if mlflow.startswith("http"):
        mlflow = f"{at.viewer}/mlflow/  (for programs: {mlflow})"
    console.note(f"  MLflow    {mlflow}")
    console.note(f"  DICOMweb  {addresses['dicomweb']}")
    if at.endpoint:
        console.note(f"  endpoint  {addresses['endpoint']}  (once it answers)")


def _addresses_of(at: Addresses) -> dict[str, str]:
    """What people and programs ask, by its name."""
    endpoint = {"endpoint": f"{at.endpoint}/invocations"} if at.endpoint else {}
    return {"viewer": at.viewer, "mlflow": without_password(at.mlflow), **endpoint, "dicomweb": f"{at.viewer}/dicomweb"}


def _watch(settings: Settings, supervisor: Supervisor, at: Addresses, *, endpoint: bool) -> None:
    """Stay, and say what ends and is started again, and when the endpoint answers, where it did not yet.

    MLflow of another command is followed by our own at its address.
    """
    followed = at.own_mlflow or bool(settings.tracking_uri)
    while True:
        time.sleep(1)
        for death in supervisor.deaths():
            if death.count == 1:
                console.note(f"{death.name} ended and is started again")
            elif death.count == HOPELESS:
                log = settings.home / "logs" / f"{death.name}.log"
                console.note(f"{death.name} ends again and again: {death.said}  ({log})")
        if at.model and not endpoint and answers(f"{at.endpoint}/ping"):
            console.note(f"the endpoint of {at.model} answers")
            endpoint = True
        if not followed and not answers(f"{at.mlflow}/health", timeout=10):
            supervisor.start("mlflow")
            announce(settings.home, at.mlflow)
            followed = True


def status(home: Path) -> dict[str, Any]:
    """What `voxloop up` keeps running in ``home``: the address to open, each program and whether it answers; if not, ``reason``
    is what it said last."""
    try:
        noted = json.loads((home / "run" / "up.json").read_text())
    except (OSError, ValueError):
        noted = None
    if noted is None or not held(home / "run"):
        return {"home": str(home), "running": False, "programs": []}
    found = {state.name: state for state in states(Path(noted["socket"]))}
    programs = []
    for name, ready in noted["ready"].items():
        state = found.get(name)
        seconds = int(time.time()) - state.started if state and state.pid else 0
        told = {"name": name, "state": state.state if state else "UNKNOWN", "pid": state.pid if state else 0}
        told |= {"seconds": seconds, "address": noted["addresses"][name], "answers": answers(ready)}
        reason = "" if told["answers"] or not state else _said_since(state.started, home / "logs" / f"{name}.log")
        programs.append({**told, "reason": reason})
    return {"home": str(home), "running": True, "pid": noted["pid"], "viewer": noted["viewer"], "programs": programs}


def _said_since(started: int, log: Path) -> str:
    """The last line of ``log``, if it was written after ``started``; ''."""
    try:
        return last_line(log) if int(log.stat().st_mtime) >= started and log.stat().st_size else ""
    except FileNotFoundError:
        return ""


def _dumps(at: Addresses, supervisor: Supervisor) -> str:
    addresses = {"web": at.viewer, "mlflow": without_password(at.mlflow), "endpoint": at.endpoint}
    ready = {name: program.ready_url for name, program in supervisor.programs.items()}
    noted = {"pid": os.getpid(), "viewer": at.viewer, "addresses": addresses, "ready": ready, "socket": str(supervisor.socket)}
    return json.dumps(noted)


def _only_project(home: Path) -> Path | None:
    found = sorted((home / "projects").glob("*.yaml"))
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise FrontDoorError(f"several projects: {names}", about=str(home), remedy="name one: voxloop up PROJECT")
    return found[0] if found else None
