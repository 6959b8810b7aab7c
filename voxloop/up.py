"""`voxloop up`: MLflow and the champion's endpoint of a home, until Ctrl-C."""

import time
from contextlib import ExitStack
from pathlib import Path

from catalog import Project
from serving import Registry, ServingError
from voxloop import console
from voxloop.endpoint import endpoint
from voxloop.errors import FrontDoorError
from voxloop.settings import Settings
from voxloop.tracking import tracking_server

__all__ = ["serve"]


def serve(settings: Settings, project: Path | None, *, mlflow_port: int, endpoint_port: int, json: bool = False) -> None:
    """Start both, print where they are, and stay; FrontDoorError where the project cannot be told or a port is taken."""
    chosen = project or _only_project(settings.home)
    with ExitStack() as stack:
        with console.stage("start MLflow"):
            uri = stack.enter_context(tracking_server(settings, port=mlflow_port))
        addresses = {"mlflow": uri}
        print(f"MLflow    {uri}", flush=True)
        if chosen is not None:
            model = Project.load(chosen).model
            try:
                with console.stage(f"start the endpoint of {model}"):
                    if Registry(uri).champion(model) is None:
                        raise ServingError("has no champion yet", about=model, remedy="play a round: voxloop demo")
                    address = stack.enter_context(endpoint(settings, model, uri, port=endpoint_port))
                addresses["endpoint"] = f"{address}/invocations"
                print(f"endpoint  {address}/invocations  (model {model})", flush=True)
            except ServingError as problem:  # MLflow is where it can be mended
                console.note(f"no endpoint: {problem}")
        if json:
            console.emit(addresses)
        if chosen is None:
            console.note("no endpoint: this home has no project yet (voxloop demo makes one)")
        console.note("Ctrl-C stops what was started here.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            console.note("stopping")


def _only_project(home: Path) -> Path | None:
    found = sorted((home / "projects").glob("*.yaml"))
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise FrontDoorError(f"several projects: {names}", about=str(home), remedy="name one: voxloop up PROJECT")
    return found[0] if found else None
