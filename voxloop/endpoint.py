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

from voxloop.errors import FrontDoorError
from voxloop.processes import LOOPBACK, Server, free_port
from voxloop.settings import Settings

__all__ = ["ask", "endpoint"]


@contextmanager
def endpoint(settings: Settings, model: str, tracking_uri: str, *, port: int = 0) -> Iterator[str]:
    """Serve ``model``'s champion while the ``with`` lasts; the address to ask."""
    chosen = free_port(port)
    address = f"http://{LOOPBACK}:{chosen}"
    options = ["--model", model, "--tracking-uri", tracking_uri, "--home", str(settings.home), "--port", str(chosen)]
    if settings.index_url:
        options += ["--index-url", settings.index_url]
    command = [sys.executable, "-m", "voxloop.endpoint", *options]
    log = settings.home / "logs" / f"endpoint-{model}.log"
    with Server("the endpoint", command, log=log, ready_url=f"{address}/ping") as server:
        server.wait_ready()
        yield address


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
    for name in ("--model", "--tracking-uri", "--home", "--index-url"):
        parser.add_argument(name, default="")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    serve(
        options.model,
        tracking_uri=options.tracking_uri,
        home=options.home,
        index_url=options.index_url or None,
        port=options.port,
    )


if __name__ == "__main__":
    main()
