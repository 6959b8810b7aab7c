"""Durable sequences: a sequence of named steps whose results are kept, so that after a kill it goes on where it stopped.

DBOS keeps the results (SQLite by default, Postgres in production). A step that did not end runs again, so every step must be
idempotent. A sequence whose step failed is begun again by the next run of the command; what its steps had done, they find done.
"""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from dbos import DBOS, SetWorkflowID

from labeling.errors import LabelingError

__all__ = ["Jobs", "Sequence", "Step", "in_background"]

Step = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""``step(name, work)`` gives the work's result, or the one that was kept of it; a result is a JSON object."""

Sequence = Callable[[Step], dict[str, Any]]
"""A sequence of steps with a result of its own."""

_sequences: dict[str, Sequence] = {}


@DBOS.workflow(name="voxloop.sequence")  # type: ignore[untyped-decorator]
def _play(key: str) -> dict[str, Any]:
    def step(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        kept: dict[str, Any] = DBOS.run_step({"name": name}, work)
        return kept

    return _sequences[key](step)


class Jobs:
    """The durable sequences of one home, in this process; a context manager. One process of a home at a time runs them."""

    def __init__(self, state_url: str, sequences: Mapping[str, Sequence]) -> None:
        """``sequences``: every sequence by key, those that an earlier process may have left unfinished among them."""
        self._sequences = dict(sequences)
        self._config = {
            "name": "voxloop",
            "system_database_url": state_url,
            "application_version": "1",
            "executor_id": "local",
            "log_level": "CRITICAL",
            "scheduler_polling_interval_sec": 3600.0,
        }

    def __enter__(self) -> "Jobs":
        _sequences.clear()
        _sequences.update(self._sequences)
        DBOS(config=self._config)
        DBOS.launch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        DBOS.destroy(workflow_completion_timeout_sec=0)

    def run(self, key: str) -> dict[str, Any]:
        """The sequence's result: kept from an earlier process, gone on with, or computed now.

        Raises what a step raised.
        """
        if key not in self._sequences:
            raise LabelingError("no such sequence", about=key, remedy="name one of the sequences that Jobs was given")
        attempt = 1
        while True:
            name = f"{key}/{attempt}"
            status = DBOS.get_workflow_status(name)
            if status is None:
                with SetWorkflowID(name):
                    handle = DBOS.start_workflow(_play, key)
                break
            if status.status in ("SUCCESS", "PENDING", "ENQUEUED", "DELAYED"):
                handle = DBOS.retrieve_workflow(name)
                break
            attempt += 1
        result: dict[str, Any] = handle.get_result()
        return result


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin ``work`` in a thread; the callable returned waits for it and gives its result or raises its error."""
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = work()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join()
        if "error" in result:
            raise result["error"]
        return result["value"]

    return wait
