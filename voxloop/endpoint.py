"""The model endpoint as a process of its own, and one question put to it.

``python -m voxloop.endpoint`` is what the process runs.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from catalog.errors import VoxloopError
from voxloop.errors import FrontDoorError
from voxloop.processes import LOOPBACK, Server, free_port
from voxloop.settings import Settings, read

__all__ = ["ask", "endpoint", "endpoint_command"]


@contextmanager
def endpoint(settings: Settings, model: str, tracking_uri: str, *, port: int = 0) -> Iterator[str]:
    """Serve ``model``'s champion while the ``with`` lasts; the address to ask."""
    chosen = free_port(port)
    address = f"http://{LOOPBACK}:{chosen}"
    command = endpoint_command(model, chosen)
    log = settings.home / "logs" / f"endpoint-{model}.log"
    environment = {**settings.environment(), "VOXLOOP_TRACKING_URI": tracking_uri, "VOXLOOP_TOKEN": ""}
    with Server("the endpoint", command, log=log, ready_url=f"{address}/ping", environment=environment) as server:
        server.wait_ready()
        yield address


def endpoint_command(model: str, port: int, *, wait: float = 0.0) -> list[str]:
    """What serves ``model`` at ``port``; home, index and MLflow are in the settings' environment. ``wait``: seconds for a
    champion."""
    options = ["--model", model, "--port", str(port), "--wait", str(wait)]
    return [sys.executable, "-m", "voxloop.endpoint", *options]


def ask(address: str, series: str, *, version: str, seconds: float = 60.0) -> str:
    """Ask for the volumes of one series until ``version`` answers; the version that did.

    Raises FrontDoorError where the answer is an error, or still another version's after ``seconds``.
    """
    body = json.dumps({"dataframe_records": [{"reference": {"series": series}, "outputs": ["volumes"]}]}).encode()
    deadline = time.monotonic() + seconds
    while True:
        request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                answer = json.load(reply)["predictions"][0]
        except (OSError, urllib.error.URLError) as problem:
            raise FrontDoorError(f"no answer: {problem}", about=address, remedy="see logs/ in the home") from None
        if answer.get("error"):
            raise FrontDoorError(str(answer["error"]), about=f"{address}, series {series}")
        if str(answer["version"]) == version or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if str(answer["version"]) != version:
        raise FrontDoorError(f"version {answer['version']} answers, the champion is {version}", about=address)
    return version


def main() -> None:
    """Serve until told to stop."""
    from serving.endpoint import serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--wait", type=float, default=0.0)
    options, settings = parser.parse_args(), read()
    serve(
        options.model,
        tracking_uri=settings.tracking_uri,
        home=settings.home,
        index_url=settings.index_url or None,
        port=options.port,
        wait=options.wait,
    )


if __name__ == "__main__":
    try:
        main()
    except VoxloopError as problem:
        raise SystemExit(str(problem)) from None
